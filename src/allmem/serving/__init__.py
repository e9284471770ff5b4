"""Serving: an OpenAI-compatible server over an engine, embedded or vLLM's, and the vLLM plugin.

    engine.py      what an engine is: token ids in, token ids out, many requests at once
    embedded.py    the engine of this package: continuous batching in one process
    vllm/          the plugin through which vLLM serves converted models
    opening.py     which engine serves a model
    server/        the HTTP side: requests, answers, limits, metrics

Nothing here is imported by the rest of the package but for the command line.
"""
