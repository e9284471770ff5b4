"""vLLM as the engine of ``allmem serve`` and of other programs: its scheduler and its processes,
with the model that the plugin runs in them.

vLLM reads models from folders, so whatever was opened (a GGUF file, a base and an adapter) is
written to a temporary one, which goes when the engine stops.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from allmem.errors import AllMemError, first_line
from allmem.folder import save_folder
from allmem.opening import OpenedModel
from allmem.serving.engine import (
    MAX_WAITING,
    Engine,
    EngineLoad,
    EngineStopped,
    GeneratedToken,
    GenerationRequest,
    usual_step_tokens,
)

__all__ = ["VLLMEngine", "sampling_params"]

SLOTS = {"cpu": 8}
SLOTS_ELSEWHERE = 64
LONGEST = 2**18
"""Tokens of prompt and answer. The state does not grow with them, but vLLM keeps a row of ids of
that length for every sequence."""
LONG_PROMPTS_PART = 2
"""A prompt takes at most one part in so many of a step, so that short ones are read beside it."""
PAGE_PADDING = 2**20
SECONDS_TO_END = 20
"""That vLLM's processes have to end by themselves."""


class VLLMEngine(Engine):
    """Continues many sequences at once with vLLM.

    Args:
        opened: the model. Its weights are written to a folder here, and not used any more.
        slots: sequences that are under way at once; each holds a state.
        step_tokens: tokens that are read in one step, for which all answers wait; ``None`` for a
            number that suits the device.
        max_waiting: requests that may wait for a slot.
        max_model_len: tokens of prompt and answer together.
        prefix_caching: keep the states of beginnings that several requests may share.

    Raises:
        AllMemError: if vLLM is not installed, or cannot serve this model.
    """

    name = "vllm"

    def __init__(
        self,
        opened: OpenedModel,
        *,
        slots: int | None = None,
        step_tokens: int | None = None,
        max_waiting: int = MAX_WAITING,
        max_model_len: int = LONGEST,
        prefix_caching: bool = False,
    ) -> None:
        self.check_sizes(
            max_waiting, slots=slots, step_tokens=step_tokens, max_model_len=max_model_len
        )
        kind = opened.model.device.type
        if step_tokens is None:
            step_tokens = usual_step_tokens(kind)
        self.slots = SLOTS.get(kind, SLOTS_ELSEWHERE) if slots is None else slots
        self.max_waiting = max_waiting
        self.max_model_len = max_model_len
        embeddings: Any = opened.model.get_input_embeddings()
        self.vocabulary = embeddings.weight.shape[0]
        self._streams = self._prompt_tokens = self._generated_tokens = 0
        self._stopping = False
        begun = opened.model.init_states(
            1, opened.model.device, window=opened.window, chunk=opened.chunk
        )
        state = sum(layer.nbytes for layer in begun)
        self._state_bytes = state * self.slots
        self._folder = tempfile.TemporaryDirectory(prefix="allmem-vllm-")
        try:
            model = save_folder(opened.model, opened.tokenizer, Path(self._folder.name) / "model")
            self._engine = _make_engine(
                model=str(model),
                skip_tokenizer_init=True,
                dtype=str(opened.model.dtype).removeprefix("torch."),
                hf_overrides=_reading(opened),
                max_model_len=max_model_len,
                max_num_seqs=self.slots,
                enable_prefix_caching=prefix_caching,
                **({} if prefix_caching else _room(state, self.slots)),
                **_step(step_tokens, self.slots, max_model_len),
            )
        except BaseException:
            self._folder.cleanup()
            raise

    async def start(self) -> None:
        """As in the contract; vLLM's processes run already."""

    async def stop(self) -> None:
        """As in the contract."""
        if self._stopping:
            return
        self._stopping = True
        await asyncio.to_thread(self._engine.shutdown, SECONDS_TO_END)
        # Else it would be shut down once more at exit, when half of Python is gone.
        del self._engine
        self._folder.cleanup()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GeneratedToken, None]:
        """As in the contract."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if self._stopping:
            raise EngineStopped("the engine is not running: the server is shutting down")
        self.admit(request, self._streams)
        prompt = TokensPrompt(prompt_token_ids=list(request.prompt))
        self._streams += 1
        self._prompt_tokens += len(request.prompt)
        try:
            async with aclosing(
                self._engine.generate(prompt, sampling_params(request), uuid.uuid4().hex)
            ) as outputs:
                async for output in outputs:
                    for token in _tokens(output.outputs[0], request):
                        self._generated_tokens += 1
                        yield token
        except (EngineDeadError, EngineGenerateError) as error:
            stopped = "the server is shutting down" if self._stopping else first_line(error)
            raise EngineStopped(f"the engine vllm failed: {stopped}") from error
        except (ValueError, VLLMClientError) as error:
            raise AllMemError(f"vllm refused the request: {first_line(error)}") from error
        finally:
            self._streams -= 1

    def load(self) -> EngineLoad:
        """As in the contract."""
        running = min(self._streams, self.slots)
        return EngineLoad(
            running=running,
            waiting=self._streams - running,
            slots=self.slots,
            state_bytes=self._state_bytes,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
        )

    @property
    def max_prompt_tokens(self) -> int:
        """One less than vLLM was told to make room for."""
        return self.max_model_len - 1


def sampling_params(request: GenerationRequest) -> Any:
    """A request in vLLM's words; it answers in token ids alone."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    how = request.sampling
    return SamplingParams(
        temperature=0.0 if how.greedy else how.temperature,
        top_p=how.top_p,
        top_k=how.top_k,
        min_p=how.min_p,
        seed=how.seed,
        presence_penalty=how.presence_penalty,
        frequency_penalty=how.frequency_penalty,
        repetition_penalty=how.repetition_penalty,
        logit_bias=how.logit_bias or None,
        max_tokens=request.max_tokens,
        stop_token_ids=sorted(request.stop),
        # The stop tokens are all that the request names.
        ignore_eos=True,
        logprobs=request.logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _tokens(output: Any, request: GenerationRequest) -> list[GeneratedToken]:
    """What a step of vLLM brought for a request."""
    tokens = []
    ids = list(output.token_ids)
    for place, token in enumerate(ids):
        finish = output.finish_reason if place == len(ids) - 1 else None
        if request.logprobs is None:
            tokens.append(GeneratedToken(token, finish))
            continue
        told = output.logprobs[place]
        best = sorted(told.items(), key=lambda pair: pair[1].rank)[: request.logprobs]
        top = tuple((number, one.logprob) for number, one in best)
        tokens.append(GeneratedToken(token, finish, told[token].logprob, top))
    return tokens


def _reading(opened: OpenedModel) -> dict[str, int]:
    """Window and chunk in place of the model's own, as the plugin reads them."""
    found: dict[str, int] = {}
    if opened.window is not None:
        found |= {"allmem_window": opened.window.window, "allmem_sinks": opened.window.sinks}
    if opened.chunk is not None:
        found["allmem_chunk"] = opened.chunk
    return found


def _room(state: int, slots: int) -> dict[str, int]:
    """Memory for the states alone, where vLLM would take nearly all that there is."""
    # One slot more: vLLM keeps the first one to itself. And what pads its pages.
    blocks = slots + 1
    return {
        "num_gpu_blocks_override": blocks,
        "kv_cache_memory_bytes": blocks * (state + PAGE_PADDING),
    }


def _step(step_tokens: int, slots: int, longest: int) -> dict[str, int]:
    # A step must hold a token of every sequence.
    tokens = max(step_tokens, slots)
    # vLLM refuses a part that no prompt can be as long as.
    part = min(max(tokens // LONG_PROMPTS_PART, 1), longest)
    return {"max_num_batched_tokens": tokens, "long_prefill_token_threshold": part}


def _make_engine(**arguments: Any) -> Any:
    """vLLM's engine for event loops.

    Raises:
        AllMemError: if vLLM is not installed, or refuses the model.
    """
    # Our process holds threads already, which a fork would not survive.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise AllMemError(
            f"vLLM cannot be used ({first_line(error)}); install it with pip install "
            "'allmem[serve]', or use the engine embedded"
        ) from error
    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    except (ValueError, RuntimeError) as error:
        raise AllMemError(f"vLLM does not serve this model: {first_line(error)}") from error
