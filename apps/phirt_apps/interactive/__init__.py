"""The interactive session of `phirt chat`: what a person types, what it means, and what comes of it.

line_reader      a message as it is typed: in an editor on a terminal, line by line elsewhere
terminal         the terminal between messages: no echo, and what was typed meanwhile
entry            what was typed: a message, a command, or a mistake in one
dropped          the files that a message names
completion, history
session          the turns: commands, attachments, answers
"""
