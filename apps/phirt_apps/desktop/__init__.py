"""The window of `phirt desktop`: a conversation with a model, for people who use no terminal.

    app            puts the parts together, runs until the window closes
    window         the window: what is pressed, dropped and shown, and when
    worker         the runtime, in a thread of its own; everything that takes time happens there
    transcript     the conversation as it is seen, growing while it is written
    markdown       an answer's Markdown as HTML, in pieces that stay small
    conversations  the files of kept conversations, and the models that one can choose
    attachments    pictures and recordings that a question brings
    sidebar        the list of kept conversations
    composer       where a question is typed, with what it brings
    recorder       the microphone

`conversations`, `markdown` and `attachments` do without Qt; all others need it (the extra `desktop`).
"""
