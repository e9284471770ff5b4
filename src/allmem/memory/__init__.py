"""The long-term memory: a network per layer and sequence, trained by gradient descent while
reading.

Pure tensors; imports only torch and the configuration, and knows nothing of transformers.
"""
