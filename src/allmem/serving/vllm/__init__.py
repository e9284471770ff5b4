"""The vLLM plugin: vLLM serves converted models as they lie in their folder, and a base model with
the memories of an adapter.

    config.py      which model is meant, and how it is to be read
    checks.py      what is refused at start-up, and the settings that the model needs
    slots.py       where vLLM keeps the states: one slot for all that a sequence leaves behind
    step.py        where the tokens of a step stand, in vLLM's words and in ours
    model.py       the model class that vLLM runs

vLLM calls ``register`` in each of its processes (entry point ``vllm.general_plugins``). Nothing
here imports vLLM before that, and only this module is imported then: the rest is when a converted
model is served.
"""

from __future__ import annotations

import logging
from functools import cache

__all__ = ["ARCHITECTURE", "CONFIG_FORMAT", "SUPPORTED", "register"]

SUPPORTED = "0.32"
"""The minor version of vLLM whose interfaces the plugin was written and tested for. They are not
stable: each minor version has moved some of them."""
ARCHITECTURE = "AllMemForCausalLM"
"""As a converted model's ``config.json`` calls it."""
CONFIG_FORMAT = "allmem"
"""The ``--config-format`` of a base model that is to be read with an adapter."""
STATE_KIND = "ALLMEM"
"""As vLLM calls our kind of state."""


@cache
def register() -> None:
    """Make converted models known to vLLM; once in a process.

    With another version of vLLM than ``SUPPORTED`` it only warns: that environment may serve other
    models, which are no concern of ours.
    """
    import vllm

    if vllm.__version__.split("+")[0].split(".")[:2] != SUPPORTED.split("."):
        logging.getLogger("vllm.allmem").warning(
            "allmem serves its models with vLLM %s, and this is vLLM %s: converted models are not "
            "known here; install 'vllm==%s.*', or use allmem's own server",
            SUPPORTED,
            vllm.__version__,
            SUPPORTED,
        )
        return

    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.transformers_utils.config import register_config_parser
    from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS
    from vllm.v1.attention.backends.registry import register_backend

    from allmem.serving.vllm.checks import AllMemSettings
    from allmem.serving.vllm.config import AllMemConfigParser, AllMemSizes

    # By name: its module imports what may not be imported before vLLM has forked.
    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:{ARCHITECTURE}")
    register_backend(STATE_KIND, f"{__name__}.step.StateBackend", is_mamba=True)
    register_config_parser(CONFIG_FORMAT)(AllMemConfigParser)
    MODEL_ARCH_CONFIG_CONVERTORS["allmem"] = AllMemSizes
    MODELS_CONFIG_MAP[ARCHITECTURE] = AllMemSettings
