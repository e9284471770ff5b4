"""What lm-eval asks of a model, asked of one of ours.

A request is what lm-eval makes of a document: its kind, a context, and a continuation or how to
generate one. A context is a text, or the messages of a conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from allmem.evaluation.harness.encoding import (
    chat_text,
    encode_pair,
    encode_prompt,
    shortened_text,
    until,
    without_beginning,
)
from allmem.evaluation.model import EvaluatedModel, Prompt
from allmem.evaluation.prompting import PAPER_NEW_TOKENS, check_can_cut, fitting_answer
from allmem.evaluation.task import Example, Row, Setting
from allmem.evaluation.thinking import after_thinking

__all__ = ["LibraryRequest", "compare", "generate", "requests_of"]

LibraryRequest = tuple[str, Any, Any]

NEW_TOKENS = 256
"""Of an answer, where a task says nothing: ``HFLM.max_gen_toks``."""


def requests_of(library_task: Any, document: dict[str, Any], chat: bool) -> list[LibraryRequest]:
    """What lm-eval asks of a model about a document.

    Args:
        chat: as a conversation, the examples as turns of it (the default of lm-eval's
            ``--apply_chat_template``).
    """

    def as_messages(history: Any, **_: Any) -> Any:
        return history

    context = library_task.fewshot_context(
        document,
        library_task.config.num_fewshot or 0,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        chat_template=as_messages if chat else None,
        gen_prefix=library_task.doc_to_prefix(document),
    )
    made = library_task.construct_requests(
        doc=document,
        ctx=context,
        metadata=(library_task.config.task, 0, 1),
        apply_chat_template=chat,
        chat_template=as_messages if chat else None,
    )
    instances = made if isinstance(made, list) else [made]
    return [(instance.request_type, *instance.args) for instance in instances]


def compare(model: EvaluatedModel, examples: Sequence[Example], setting: Setting) -> list[Row]:
    """How likely each choice is. All choices of all examples go to the model at once."""
    pairs, cuts = [], []
    for example in examples:
        for _, context, continuation in example.ask:
            before, after = encode_pair(model.tokenizer, context, continuation)
            room = setting.truncate
            if room is None and model.reach is not None:
                # One more than the model was made for: the last token is not read.
                room = max(1, model.reach + 1 - len(after))
            kept = before if room is None else before[-room:]
            pairs.append((kept, after))
            cuts.append(len(before) - len(kept))
    answers = iter(zip(pairs, cuts, model.likelihoods(pairs), strict=True))
    rows = []
    for example in examples:
        own = [next(answers) for _ in example.ask]
        rows.append(
            {
                "answers": [[found.log_probability, found.greedy] for _, _, found in own],
                "prompt_tokens": max(len(context) for (context, _), _, _ in own),
                "cut": max(cut for _, cut, _ in own),
            }
        )
    return rows


def generate(model: EvaluatedModel, examples: Sequence[Example], setting: Setting) -> list[Row]:
    """What a model answers."""
    requests = [example.ask[0] for example in examples]
    prompts = [_prompt(request, model, setting) for request in requests]
    numbers = [example.number(setting.seed) for example in examples]
    completions = model.complete(prompts, setting.sampling, numbers)
    rows = []
    for request, prompt, completion in zip(requests, prompts, completions, strict=True):
        text = completion.text
        if _thinks(request, setting):
            text = until(after_thinking(text), _stops(request))
        rows.append(
            {
                "prediction": text,
                "prompt_tokens": completion.prompt_tokens,
                "cut": prompt.cut,
                "new_tokens": completion.new_tokens,
                "finished": completion.finished,
            }
        )
    return rows


def _prompt(request: LibraryRequest, model: EvaluatedModel, setting: Setting) -> Prompt:
    """What a model reads of a request, without its beginning where it is too long.

    The paper's longest answer is as long as the model's reach allows, and never shorter than the
    task's own.
    """
    _, context, how = request
    messages = context if isinstance(context, list) else None
    own = int(how.get("max_gen_toks", NEW_TOKENS))
    most = setting.max_new_tokens or (PAPER_NEW_TOKENS if setting.protocol == "paper" else own)
    text = messages[-1]["content"] if messages else context
    ids, cut = None, 0
    check_can_cut(model, setting.truncate or model.reach)
    if model.tokenizer is not None:
        whole = chat_text(model.tokenizer, messages, setting.thinking) if messages else context
        ids = encode_prompt(model.tokenizer, whole)
        asked = min(len(ids), setting.truncate or len(ids))
        most = fitting_answer(most, setting.max_new_tokens or min(own, most), model.reach, asked)
        longest = setting.truncate
        if model.reach is not None and (longest is None or model.bounded):
            longest = min(model.reach - most, asked)
        ids, cut = without_beginning(ids, longest)
        if cut:
            # A server continues the same text: no conversation is what is left of one.
            messages, text = None, shortened_text(model.tokenizer, ids)
    return Prompt(
        ids=ids,
        text=text,
        messages=messages,
        cut=cut,
        max_new_tokens=most,
        stop=() if _thinks(request, setting) else _stops(request),
    )


def _thinks(request: LibraryRequest, setting: Setting) -> bool:
    """Whether a chain of thought comes before the answer, in which stop texts mean nothing."""
    return setting.thinking and isinstance(request[1], list)


def _stops(request: LibraryRequest) -> tuple[str, ...]:
    stops = request[2].get("until") or []
    return tuple(stop for stop in ([stops] if isinstance(stops, str) else stops) if stop)
