"""A server on this machine that speaks OpenAI's protocol, for programs that know it: `phirt serve`.

From the door inwards; each module knows those above it and none below:

    settings          what may be chosen, checked once
    errors            refusals in OpenAI's shape
    metrics           counts and times, for Prometheus
    guard             who may ask at all: Host, Origin, the key
    bodies            requests read within limits: JSON and forms
    slots             how many are answered at once, and how many wait
    jobs              blocking work in threads, its events in the event loop
    serving           what all answers share: the model, the slots, the end
    endpoint, sse     a request taken in and answered, whole or as events
    media, turns      conversations as both protocols have them, made into phirt's messages
    tool_use          tools offered, forced, called
    sampling          settings of an answer, penalties, probabilities of its tokens
    answers           one answer: its request, and its events as they come
    chat_*            /v1/chat/completions
    responses_*       /v1/responses
    transcriptions, subtitles, embeddings, models    the other addresses
    app, protocol, run    all of them together; connections; the process

Everything that computes runs in threads: the event loop only reads, writes and waits. Nothing is kept of a
request when it is answered, and nothing is sent anywhere but to who asked.
"""
