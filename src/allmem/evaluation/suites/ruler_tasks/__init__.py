"""What RULER asks, made up sample by sample: one file per generator.

They know nothing of tokens: a sample has a size in words, sentences or documents, and
``fitting`` finds the size with which it fills a length.
"""
