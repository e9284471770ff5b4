"""From a benchmark's prompt to what a model reads: cut in the middle if it is too long, then
wrapped in the chat template, as the official code of LongBench and its followers does it
(THUDM/LongBench ``pred.py``).

A server refuses what is beyond its reach: for one, prompts are cut as much more as template and
answer need.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from allmem.errors import AllMemError
from allmem.evaluation.model import EvaluatedModel, Prompt

if TYPE_CHECKING:
    from allmem.evaluation.task import Request, Setting

__all__ = ["PAPER_NEW_TOKENS", "check_can_cut", "cut_middle", "fitting_answer", "make_prompt"]

PAPER_NEW_TOKENS = 32_768
"""The paper's longest answer (section 4)."""


def cut_middle(tokenizer: Any, text: str, longest: int, joined: bool = False) -> tuple[str, int]:
    """A text of at most ``longest`` tokens, from its first and last half, and how many tokens were
    taken out.

    The text is tokenised with the tokenizer's special tokens, and both halves are decoded without,
    as one if ``joined``: so it may come to a few tokens more or fewer when it is tokenised again.
    """
    ids = tokenizer(text)["input_ids"]
    if len(ids) <= longest:
        return text, 0
    half = longest // 2
    ends = [ids[:half], ids[-half:] if half else []]
    if joined:
        ends = [ends[0] + ends[1]]
    kept = "".join(tokenizer.decode(part, skip_special_tokens=True) for part in ends)
    return kept, len(ids) - 2 * half


def check_can_cut(model: EvaluatedModel, longest: int | None) -> None:
    """Refuse to ask a server what may have to be cut, without a tokenizer to do it with.

    Args:
        longest: to which prompts are cut; ``None`` for not at all.

    Raises:
        AllMemError: if it cannot be done.
    """
    if longest is not None and model.tokenizer is None and model.bounded:
        raise AllMemError(
            f"prompts for {model.label} are cut at {longest} tokens, which needs its tokenizer; "
            "name it (--tokenizer)"
        )


def fitting_answer(most: int, least: int, reach: int | None, read: int) -> int:
    """Tokens of an answer: as many as the model's reach leaves behind those that are read, at most
    ``most`` and never fewer than ``least``."""
    return most if reach is None else max(least, min(most, reach - read))


def make_prompt(request: Request, model: EvaluatedModel, setting: Setting) -> Prompt:
    """What a model reads of a request.

    Without a tokenizer nothing is cut, and the server wraps and tokenises.

    Raises:
        AllMemError: if the prompt has to be cut and cannot.
    """
    longest = setting.truncate or request.longest
    most = setting.max_new_tokens or request.max_new_tokens
    least = None if setting.max_new_tokens else request.least_new_tokens
    shorter = least is not None and least < most
    # Where the answer may have to be shorter, tokens have to be counted too.
    check_can_cut(model, longest or (model.reach if shorter else None))
    if model.tokenizer is None:
        return _made(request, model, setting, None, most)
    prompt = _made(request, model, setting, longest, most)
    if least is not None and model.reach is not None:
        new_tokens = fitting_answer(most, least, model.reach, len(prompt.ids or ()))
        prompt = replace(prompt, max_new_tokens=new_tokens)
    if longest is not None and model.bounded and model.reach is not None:
        return _within_reach(prompt, request, model, setting)
    return prompt


def _within_reach(
    prompt: Prompt, request: Request, model: EvaluatedModel, setting: Setting
) -> Prompt:
    """A prompt cut so far that its answer has room within the model's reach."""
    assert model.reach is not None
    longest = len(model.tokenizer(str(request.text))["input_ids"]) - prompt.cut
    new_tokens = prompt.max_new_tokens
    while (over := len(prompt.ids or ()) + new_tokens - model.reach) > 0:
        # Again and again: cut halves may be tokenised otherwise than they were before.
        longest -= over
        if longest < 1:
            raise AllMemError(
                f"an answer of {new_tokens} tokens leaves no room for the prompt within the "
                f"{model.reach} tokens of {model.label}; allow a shorter one (--max-new-tokens)"
            )
        prompt = _made(request, model, setting, longest, new_tokens)
    return prompt


def _made(
    request: Request,
    model: EvaluatedModel,
    setting: Setting,
    longest: int | None,
    new_tokens: int,
) -> Prompt:
    tokenizer = model.tokenizer
    text, cut = str(request.text), 0
    if longest is not None:
        text, cut = cut_middle(tokenizer, text, longest, request.joined)
    messages = None
    if request.chat and (tokenizer is None or tokenizer.chat_template):
        messages = [{"role": "user", "content": text}]
        if request.system is not None:
            messages.insert(0, {"role": "system", "content": request.system})
    ids = None
    if tokenizer is not None and messages is None:
        ids = tokenizer(text + request.answer_prefix)["input_ids"]
    elif tokenizer is not None:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=setting.thinking
        )
        ids = tokenizer(rendered + request.answer_prefix, add_special_tokens=False)["input_ids"]
    return Prompt(
        ids=ids,
        text=text,
        messages=messages,
        answer_prefix=request.answer_prefix,
        cut=cut,
        max_new_tokens=new_tokens,
        stop=request.stop,
        ends_at=request.ends_at,
    )
