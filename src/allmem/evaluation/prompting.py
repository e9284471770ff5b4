"""From a benchmark's prompt to what a model reads: cut in the middle if it is too long, then
wrapped in the chat template, as the official code of LongBench and its followers does it
(THUDM/LongBench ``pred.py``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from allmem.evaluation.model import EvaluatedModel, Prompt

if TYPE_CHECKING:
    from allmem.evaluation.task import Request, Setting

__all__ = ["cut_middle", "make_prompt"]


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


def make_prompt(request: Request, model: EvaluatedModel, setting: Setting) -> Prompt:
    """What a model reads of a request.

    Without a tokenizer nothing is cut, and the server wraps and tokenises.
    """
    tokenizer = model.tokenizer
    text, cut = request.text, 0
    longest = setting.truncate or request.longest
    if tokenizer is not None and longest is not None:
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
        max_new_tokens=setting.max_new_tokens or request.max_new_tokens,
        stop=request.stop,
        ends_at=request.ends_at,
    )
