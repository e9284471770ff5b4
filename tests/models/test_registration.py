"""Importing ``allmem`` is enough for transformers, in either order, and costs nothing by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.tiny import tiny_model


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_allmem_alone_imports_nothing_heavy() -> None:
    heavy = run(
        "import sys, allmem; allmem.MemoryConfig(); dir(allmem); "
        "print([m for m in ('torch', 'transformers', 'safetensors', 'numpy') if m in sys.modules])"
    )
    assert heavy.strip() == "[]"


LOAD = """
import sys
{imports}
config = AutoConfig.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert type(config).__name__ == "AllMemConfig", config
assert type(model).__name__ == "AllMemForCausalLM", type(model)
assert model(model.dummy_inputs["input_ids"]).logits.isfinite().all()
"""
ORDERS = {
    "allmem-first-and-again": "import allmem\nimport importlib\nimportlib.reload(allmem)\n"
    "from transformers import AutoConfig, AutoModelForCausalLM",
    "allmem-last": "from transformers import AutoConfig, AutoModelForCausalLM\nimport allmem",
}
AUTO = "from transformers import AutoConfig, AutoModelForCausalLM"
# transformers imports its Auto modules in the midst of others, which are then half made.
ORDERS |= {
    f"{first}-first": f"import allmem\nfrom transformers import {first}\n{AUTO}"
    for first in ("PreTrainedModel", "AttentionInterface", "Trainer", "pipeline")
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_auto_classes_load_a_checkpoint(order: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    run(LOAD.format(imports=ORDERS[order]), str(tmp_path))
