"""How a mixer is tried: built with random weights in float64, read in pieces, and compared, with
the example at hand kept so that a failure can be told with it. What is tried stands in
``allmem.mixers.conformance``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from allmem.config import WindowConfig
from allmem.layout import Layout
from allmem.memory.projections import AttentionWeights, Wanted
from allmem.mixers.attention import WindowMixer
from allmem.mixers.base import Mixer
from allmem.mixers.layer import LayerMixer
from allmem.state import State

__all__ = ["CPU", "DTYPE", "ConformanceError", "Trial", "randomise", "small_attention"]

CPU = torch.device("cpu")
DTYPE = torch.float64


class ConformanceError(AssertionError):
    """A mixer breaks a property; the message gives the smallest failing example that was tried."""


Check = Callable[[Mixer, list[int]], None]
"""Raises if the mixer fails for some lengths."""


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Add noise to every parameter: std 0.3 to vectors, half the usual starting std, and 0.1 at
    least, to matrices."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            std = 0.3 if parameter.dim() < 2 else max(0.1, 0.5 * parameter.shape[-1] ** -0.5)
            noise = torch.randn(parameter.shape, generator=generator, dtype=DTYPE)
            parameter.add_((std * noise).to(parameter))


def small_attention(
    hidden_size: int, attention: AttentionWeights, window: WindowConfig
) -> WindowMixer:
    """A window attention with random frozen weights, for a memory to stand beside.

    Args:
        attention: its shapes.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    from allmem.models.layer import route_attention
    from allmem.models.structure import attention_shape, layer_rotary

    # A Llama computes nothing in fp32 inside: finite differences need float64 throughout.
    config = LlamaConfig(
        vocab_size=2,
        hidden_size=hidden_size,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=attention.query_heads,
        num_key_value_heads=attention.kv_heads,
        head_dim=attention.head_dim,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    model.requires_grad_(False)
    route_attention(model)
    core = model.base_model.layers[0].self_attn
    rotary = layer_rotary(model, core, 0, window)
    return WindowMixer(core, attention_shape(model.config), rotary, window)


class Trial:
    """Builds a mixer and reads with it; ``make_mixer`` says which."""

    hidden_size: int = 24
    """D of the mixer that ``make_mixer`` builds."""
    attention: AttentionWeights = AttentionWeights(query_heads=4, kv_heads=2, head_dim=8)
    """Shapes of the attention beside which a mixer is tried that wants its features."""
    window: WindowConfig = WindowConfig(window=7, sinks=2)
    """Of that attention."""
    tolerance: float = 1e-8
    """Largest absolute difference between two ways of computing the same."""
    example: str = ""
    """What a property is tried with at the moment, so that whatever is raised can be told with
    it."""

    def make_mixer(self) -> Mixer:
        """A new mixer, with a chunk (if it has one) of 3 to 8 tokens."""
        raise NotImplementedError

    def _mixer(self) -> Mixer:
        self.example = "building the mixer"
        mixer = self.make_mixer()
        if mixer.wants > Wanted.NOTHING:
            beside = small_attention(self.hidden_size, self.attention, self.window)
            mixer = LayerMixer(beside, mixer)
        randomise(mixer.to(DTYPE))
        return mixer

    def _inputs(self, rows: int, length: int, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(rows, length, self.hidden_size, generator=generator, dtype=DTYPE)

    def _start(self, mixer: Mixer, rows: int) -> State:
        return mixer.init_state(rows, DTYPE, CPU)

    def _read(self, mixer: Mixer, x: Tensor) -> tuple[Tensor, State]:
        return self._continue(mixer, x, self._start(mixer, x.shape[0]), 0)

    def _read_as(self, mixer: Mixer, x: Tensor, parts: Sequence[int]) -> Tensor:
        """y of a text that is read in several calls."""
        pieces, state, done = [], self._start(mixer, x.shape[0]), 0
        for count in filter(None, parts):
            y, state = self._continue(mixer, x[:, done : done + count], state, done)
            pieces.append(y)
            done += count
        self.example = f"{x.shape[1]} tokens read as {list(parts)}"
        return torch.cat(pieces, 1)

    def _continue(self, mixer: Mixer, x: Tensor, state: State, start: int) -> tuple[Tensor, State]:
        rows, tokens = x.shape[:2]
        self.example = f"[{rows}, {tokens}] tokens read after {start}"
        y, state = mixer(x, state, Layout.dense(start, rows, tokens, CPU))
        return y, state

    def _smallest(self, check: Check, examples: Sequence[list[int]]) -> None:
        """Check the last and largest of the examples; if it fails, fail with the first that does.

        So a mixer that conforms is checked only once.
        """
        mixer = self._mixer()
        try:
            check(mixer, examples[-1])
            return
        except Exception as error:
            failed, largest = error, self.example
        for example in examples[:-1]:
            check(mixer, example)
        self.example = largest
        raise failed

    def _same(self, got: Tensor, expected: Tensor) -> None:
        """Raise a ConformanceError that tells the example at hand, unless the two are equal."""
        if got.shape != expected.shape:
            raise ConformanceError(
                f"{self.example}: outputs have the shape {list(got.shape)}, not "
                f"{list(expected.shape)}"
            )
        difference = float((got - expected).detach().abs().max()) if got.numel() else 0.0
        if not difference <= self.tolerance:
            raise ConformanceError(f"{self.example}: outputs differ by {difference:.3g}")
