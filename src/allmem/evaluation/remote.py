"""A model behind a server that speaks OpenAI's protocol, under test: vLLM (``vllm serve``), SGLang,
llama.cpp or a service. It answers; nothing else can be asked of it.

Conversations go to ``/chat/completions``, texts to ``/completions``. Where the server is vLLM,
SGLang or ``allmem serve``, as its list of models says, their extensions carry what the protocol
cannot: how an answer begins, whether the model thinks first, top-k sampling. Other servers are not
asked what needs them.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from allmem.errors import AllMemError
from allmem.evaluation.model import Completion, EvaluatedModel, Prompt
from allmem.models.fingerprint import vocabulary
from allmem.reading import Sampling

__all__ = ["KEY", "RemoteModel"]

KEY = "OPENAI_API_KEY"
"""The environment variable that holds the key, if the server wants one."""
EXTENDED = ("allmem", "vllm", "sglang")
"""Servers with extensions, by ``owned_by`` in their list of models."""
BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
"""Answers after which it is worth to ask again."""
ATTEMPTS = 6
STOPS = 4
"""Stop texts that the protocol allows; more are applied here."""


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for."""

    timeout: float = 3600.0
    """Seconds for one answer: thousands of tokens of thinking take their time."""
    pause: float = 1.0
    """Seconds before the second attempt; doubled with every further one."""


class RemoteModel(EvaluatedModel):
    """A model behind a server.

    ``complete`` refuses, before anything is sent, what only an extension could tell a server that
    has none.

    Args:
        url: of the server, with or without ``/v1``.
        model: as the server calls it; ``None`` for the only one that it has.
        label: its name in reports; ``None`` for the server's.
        tokenizer: to cut prompts that are too long; without one, tasks that may have to are refused
            (``prompting``).
        concurrency: prompts that are under way at once.
        thinking: whether the model shall think first, where the server can be told.

    Raises:
        AllMemError: if the server cannot be reached, or has no such model.
    """

    bounded = True

    def __init__(
        self,
        url: str,
        model: str | None = None,
        label: str | None = None,
        *,
        tokenizer: Any = None,
        reach: int | None = None,
        concurrency: int = 16,
        thinking: bool = False,
        patience: Patience | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise AllMemError(f"{url!r} is no address of a server; it begins with http://")
        if not self.url.endswith("/v1"):
            self.url += "/v1"
        self.concurrency = concurrency
        self.thinking = thinking
        self.patience = patience or Patience()
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=self.patience.timeout, headers=headers)
        found = self._model(model)
        self.model = str(found["id"])
        self.extended = found.get("owned_by") in EXTENDED
        self.label = label or self.model
        self.tokenizer = tokenizer
        self.reach = reach or found.get("max_model_len")

    def identity(self) -> dict[str, Any]:
        words = None if self.tokenizer is None else vocabulary(self.tokenizer)["fingerprint"]
        return {"kind": "server", "model": self.model, "tokenizer": words, "reach": self.reach}

    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling, numbers: Sequence[int]
    ) -> list[Completion]:
        if not self.extended:
            self._check_protocol(prompts, sampling)
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(self._one, prompts, [sampling] * len(prompts), numbers))

    def _check_protocol(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """What the protocol alone cannot say.

        Raises:
            AllMemError: if something is asked for that it cannot.
        """
        known = "vLLM, SGLang and allmem can, and say so in their list of models (owned_by)"
        if sampling.top_k:
            raise AllMemError(
                f"{self.url} cannot be told top_k = {sampling.top_k}; {known}. Sample without it "
                "(--top-k 0)"
            )
        if any(prompt.messages is not None and prompt.answer_prefix for prompt in prompts):
            raise AllMemError(
                f"{self.url} cannot be told how an answer in a conversation begins, which this "
                f"task does; {known}. Leave the task out, or load the model here"
            )

    def _model(self, name: str | None) -> dict[str, Any]:
        """What the server says about a model."""
        listed = self._ask("GET", "/models", None).get("data") or []
        known = {str(one.get("id")): one for one in listed if isinstance(one, dict)}
        if name is None and len(known) == 1:
            return next(iter(known.values()))
        if name is None or (known and name not in known):
            raise AllMemError(
                f"the server {self.url} has the models {', '.join(known) or 'none'}; name one of "
                f"them{'' if name is None else f', not {name!r}'}"
            )
        return known.get(name, {"id": name})

    def _one(self, prompt: Prompt, sampling: Sampling, number: int) -> Completion:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": prompt.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.temperature > 0:
            body["seed"] = random.Random(f"{sampling.seed} response {number}").getrandbits(31)
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if prompt.stop:
            body["stop"] = list(prompt.stop[:STOPS])
        if prompt.messages is None:
            path = "/completions"
            body["prompt"] = prompt.text + prompt.answer_prefix
        else:
            path = "/chat/completions"
            body |= self._conversation(prompt)
        answer = self._ask("POST", path, body)
        try:
            choice = answer["choices"][0]
            said = choice["message"]["content"] if "message" in choice else choice["text"]
            ended = choice.get("finish_reason") == "stop"
            usage = answer.get("usage") or {}
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise AllMemError(
                f"{self.url}{path} answered in an unknown form: {str(answer)[:200]}"
            ) from error
        text = said or ""
        places = [text.find(stop) for stop in prompt.stop if stop in text]
        return Completion(
            text[: min(places, default=len(text))],
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
            ended or bool(places),
        )

    def _conversation(self, prompt: Prompt) -> dict[str, Any]:
        messages = list(prompt.messages or ())
        extensions: dict[str, Any] = {}
        if self.extended:
            extensions["chat_template_kwargs"] = {"enable_thinking": self.thinking}
        if prompt.answer_prefix:
            messages.append({"role": "assistant", "content": prompt.answer_prefix})
            extensions |= {"continue_final_message": True, "add_generation_prompt": False}
        return {"messages": messages, **extensions}

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """What the server answers; asked again while it is busy or cannot be reached.

        Raises:
            AllMemError: if it refuses, or stays out of reach.
        """
        why = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self.patience.pause * 2 ** (attempt - 1))
            try:
                response = self._client.request(method, self.url + path, json=body)
            except httpx.TransportError as error:
                why = str(error) or type(error).__name__
                continue
            if response.status_code in BUSY:
                why = _told(response)
                continue
            if response.is_error:
                raise AllMemError(f"{self.url}{path} refused: {_told(response)}{_hint(response)}")
            try:
                return dict(response.json())
            except (ValueError, TypeError) as error:
                raise AllMemError(
                    f"{self.url}{path} did not answer in JSON: {response.text[:200]!r}; is it the "
                    "address of an OpenAI-compatible server?"
                ) from error
        raise AllMemError(
            f"{self.url}{path} did not answer in {ATTEMPTS} attempts: {why}; what was answered "
            "before is kept, and the same command goes on"
        )


def _told(response: httpx.Response) -> str:
    """The status and what the server says about it, in a line."""
    try:
        said = response.json()
        error = said.get("error", said)
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = response.text
    return f"{response.status_code} {' '.join(str(text).split())[:300]}"


def _hint(response: httpx.Response) -> str:
    if response.status_code in (401, 403):
        return f" (the key is read from the environment variable {KEY})"
    return ""
