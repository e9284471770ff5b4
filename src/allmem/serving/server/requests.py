"""What a client may ask: OpenAI's fields, and those of vLLM's that make sense here.

What is not supported is refused rather than ignored; fields that change nothing (``user``,
``metadata``) are accepted. Types are strict: ``"1"`` is no number.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from allmem.serving.sampling import LIMIT_OF_BIAS, LIMIT_OF_PENALTIES, REPETITION

__all__ = [
    "FIELDS",
    "REFUSED",
    "ChatRequest",
    "CompletionRequest",
    "GenerationFields",
    "Message",
]

MAX_MESSAGES = 10_000
"""Each costs a call of the tokenizer."""
MAX_FIELDS = 64
"""Of an object: a million fields that are not known would be a million errors."""
MAX_STOPS = 16
"""OpenAI allows 4."""
MAX_TOP_LOGPROBS = 20
"""As in OpenAI's API."""


def _whole(text: str) -> str:
    """JSON can spell halves of characters, which are no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the character at {error.start} is half of one") from None
    return text


def _few(value: Any, most: int) -> Any:
    """Count before the values are looked at, for the same reason."""
    if isinstance(value, dict) and len(value) > most:
        raise ValueError(f"at most {most} keys are allowed")
    return value


def _keys(most: int) -> tuple[Any, Any]:
    return BeforeValidator(lambda value: _few(value, most)), Field(max_length=most)


Text = Annotated[str, AfterValidator(_whole)]
StopString = Annotated[Text, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Penalty = Annotated[float, Field(ge=-LIMIT_OF_PENALTIES, le=LIMIT_OF_PENALTIES)]
Bias = Annotated[float, Field(ge=-LIMIT_OF_BIAS, le=LIMIT_OF_BIAS)]
# Half of 64 bits is left for the seeds of further choices.
Seed = Annotated[int, Field(ge=-(2**62), lt=2**62)]
SOME = Field(min_length=1, fail_fast=True)
Nothing = Annotated[list[Any], Field(max_length=0, fail_fast=True)]
TokenKey = Annotated[str, Field(pattern="^[0-9]{1,9}$")]
# Words and numbers only: whatever a template shows of them must not spell control tokens.
OptionValue = bool | int | float | Annotated[str, Field(pattern="^[A-Za-z0-9_.-]{0,64}$")] | None


class Strict(BaseModel):
    """Unknown fields are errors, and so are values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        return _few(value, MAX_FIELDS)


class StreamOptions(Strict):
    """Of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Accepted; nothing is obfuscated."""


class TextFormat(Strict):
    """The one format there is."""

    type: Literal["text"]


class GenerationFields(Strict):
    """What both endpoints know."""

    model: Text | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: (
        StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)] | None
    ) = None

    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=REPETITION[0], le=REPETITION[1])] | None = None
    logit_bias: Annotated[dict[TokenKey, Bias], *_keys(1024)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64, fail_fast=True)] | None = None

    # Accepted, without an effect.
    user: str | None = None
    metadata: Annotated[dict[str, str], *_keys(16)] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    # Accepted with the value that asks for nothing; see REFUSED.
    store: Literal[False] | None = None
    skip_special_tokens: Literal[True] | None = None
    min_tokens: Literal[0] | None = None
    use_beam_search: Literal[False] | None = None
    response_format: TextFormat | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream shall end with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """A turn. The fields below ``name`` are in answers of OpenAI's, and come back with them."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None
    """Accepted; the model is not shown it."""
    refusal: None = None
    audio: None = None
    annotations: Nothing | None = None
    function_call: None = None
    tool_calls: Nothing | None = None

    def text(self) -> str:
        """What it says."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(GenerationFields):
    """``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, OptionValue], *_keys(32)] | None = None

    tools: Nothing | None = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Nothing | None = None
    function_call: Literal["none"] | None = None
    modalities: Annotated[list[Literal["text"]], SOME] | None = None
    audio: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None


class CompletionRequest(GenerationFields):
    """``/v1/completions``."""

    prompt: (
        Text
        | Annotated[list[Text], SOME]
        | Annotated[list[TokenId], SOME]
        | Annotated[list[Annotated[list[TokenId], SOME]], SOME]
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    add_special_tokens: bool | None = None

    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None


REFUSED = {
    "store": "store: nothing is stored here; leave it out or send false",
    "skip_special_tokens": "skip_special_tokens: control tokens are never shown; leave it out",
    "min_tokens": "min_tokens is not supported; ignore_eos writes up to max_tokens",
    "use_beam_search": "use_beam_search is not supported; answers are sampled",
    "response_format": 'response_format: only {"type": "text"} is supported; ask for JSON in words',
    "tools": "tools are not supported; leave them out",
    "tool_choice": "tool_choice: tools are not supported; leave it out",
    "functions": "functions are not supported; leave them out",
    "function_call": "function_call: functions are not supported; leave it out",
    "modalities": 'modalities: only ["text"] is supported',
    "audio": "audio is not supported; leave it out",
    "prediction": "prediction is not supported; leave it out",
    "reasoning_effort": "reasoning_effort is not supported; models that think take "
    '{"chat_template_kwargs": {"enable_thinking": true}}',
    "verbosity": "verbosity is not supported; ask for short answers in words",
    "web_search_options": "web_search_options: there is no search here; leave it out",
    "echo": "echo: prompts are not echoed; leave it out",
    "best_of": "best_of is not supported; ask for n answers and choose",
    "suffix": "suffix: the models here write forward only; leave it out",
}
"""What is said of fields that are known and not supported."""

FIELDS = {
    name
    for kind in (ChatRequest, CompletionRequest, Message, TextPart, StreamOptions, TextFormat)
    for name in kind.model_fields
}
"""Names that a path into a request may hold."""
