"""Kernels are tested where ``tests.interpreter`` says."""

from tests.interpreter import device

__all__ = ["device"]
