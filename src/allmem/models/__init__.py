"""Converted models: configuration, conversion, modelling, cache, adapter, checkpoint sources.

The public names are reached as ``allmem.convert`` and so on. Nothing is imported here:
transformers' Auto modules import ``configuration`` and ``modeling`` one by one (see
``allmem._registration``).
"""
