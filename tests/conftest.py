"""What every test runs under: no network, few threads, the same bits in each run.

The settings are made at import, before any test module imports transformers, which reads its
environment once. Fixtures and helpers live beside the tests that use them.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# cuBLAS repeats its sums in the same order only with a workspace of fixed size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

# The models under test are tiny: more threads cost more than they bring, and a fixed number
# keeps the order of sums, and so the rounding, the same on every machine.
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Each test draws the same numbers, whichever tests ran before it."""
    torch.manual_seed(0)
