"""The HTTP side of ``allmem serve``: OpenAI's protocol over an engine.

    requests.py      what a client may ask, and what is refused
    responses.py     what it is answered
    limits.py        how much one client may ask for
    errors.py        every error in the protocol's form
    encoding.py      conversations and texts to token ids, in a thread of their own
    spelling.py      single tokens as text and bytes, for log-probabilities
    stops.py         stop strings, across the borders of tokens
    answer.py        the tokens of one answer to text
    merging.py       several answers written at once, within a time; silences
    planning.py      a request to what the engine is asked
    service.py       the model, its limits and its engine, for the endpoints
    events.py        server-sent events, and clients that vanish
    replying.py      what the two answering endpoints share
    chat.py, completions.py, others.py    the endpoints
    guards.py        what stands before them: keys, bodies, shutting down
    metrics.py       what Prometheus is told
    app.py           all of it as an ASGI application
    sockets.py       where it listens
    running.py       signals, and an end in good order

Nothing here knows how an engine works.
"""
