"""Evaluation: what a model with a memory can do, and what it cannot.

A ``Task`` gives examples and scores answers; an ``EvaluatedModel`` answers; the runner brings them
together and keeps every answer in a file as it comes. Scores are always made from those files.
"""
