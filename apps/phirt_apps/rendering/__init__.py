"""How an answer appears on a terminal: words wrapped at its width, Markdown rendered, nothing ever redrawn.

Knows text, widths and escape sequences. Does not know models, conversations or commands.
"""
