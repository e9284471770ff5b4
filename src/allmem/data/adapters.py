"""From a row of some data set to conversations: one small function for each form that rows come in.

A row is a dictionary. Its form is given by name, or recognised by its keys. Knows nothing of files,
tokens or cleaning; a row that lacks what its form needs raises ``Dropped``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from allmem.data.conversation import ROLES, Conversation, Dropped, Message
from allmem.errors import AllMemError, unknown_name

__all__ = ["FORMS", "conversations", "recognise"]

Row = Mapping[str, Any]

ROLE_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "instruction": "system",
}
"""Names of roles in ShareGPT and its kin."""

THINKING = re.compile(r"\A\s*<think>(.*?)</think>\s*", re.DOTALL)


def _text(row: Row, *names: str) -> str | None:
    """The first of these fields that holds text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value
    return None


def _need(row: Row, *names: str, reason: str) -> str:
    value = _text(row, *names)
    if value is None:
        raise Dropped(reason, f"no {' or '.join(names)}")
    return value


def _answer(row: Row) -> str | None:
    """One reference answer: the first, where there are several."""
    for name in ("answer", "answers", "response", "output", "completion"):
        value = row.get(name)
        if isinstance(value, Mapping):
            # SQuAD keeps the texts of several answers beside where they start.
            value = value.get("text")
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = next((v for v in value if isinstance(v, str) and v.strip()), None)
        if isinstance(value, int | float):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return value
    return None


def _message(role: Any, content: Any, thinking: Any = None) -> Message:
    role = ROLE_NAMES.get(str(role).lower(), str(role).lower())
    if role not in ROLES:
        raise Dropped("unknown_role", role)
    if isinstance(content, Sequence) and not isinstance(content, str):
        # OpenAI's parts: [{"type": "text", "text": ...}]
        parts = [str(p["text"]) for p in content if isinstance(p, Mapping) and p.get("text")]
        if len(parts) != len(content):
            raise Dropped("not_text", f"a {role} message holds more than text")
        content = "".join(parts)
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise Dropped("not_text", f"a {role} message is a {type(content).__name__}")
    thought = thinking if isinstance(thinking, str) else ""
    if role == "assistant" and (found := THINKING.match(content)):
        thought = thought or found[1].strip()
        content = content[found.end() :]
    return Message(role, content, thought if role == "assistant" else "")


def _turns(row: Row, field: str, role: str, content: str) -> list[Message]:
    turns = _as_list(row.get(field))
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise Dropped("no_messages", f"{field!r} is empty")
    messages = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise Dropped("not_text", f"a turn of {field!r} is a {type(turn).__name__}")
        if turn.get("tool_calls"):
            raise Dropped("tool_calls")
        thinking = turn.get("reasoning_content") or turn.get("thinking")
        messages.append(_message(turn.get(role), turn.get(content), thinking))
    return messages


def _as_list(turns: Any) -> Any:
    """Turns as a list: some versions of datasets hand over one list for each field."""
    if isinstance(turns, Mapping) and turns and all(isinstance(v, list) for v in turns.values()):
        return [dict(zip(turns, turn, strict=False)) for turn in zip(*turns.values(), strict=False)]
    return turns


def _system(row: Row) -> list[Message]:
    text = _text(row, "system", "system_prompt")
    return [] if text is None else [Message("system", text)]


def _dialogue(row: Row, messages: list[Message]) -> Iterator[Conversation]:
    if messages[-1].role != "assistant":
        # ChatQA: the messages end with the question, the answer stands apart.
        answer = _answer(row)
        if answer is None:
            raise Dropped("no_response", "the last message is not the assistant's")
        messages = [*messages, _message("assistant", answer)]
    if messages[0].role != "system":
        messages = [*_system(row), *messages]
    yield Conversation(tuple(messages), _text(row, "document", "context"))


def _messages(row: Row) -> Iterator[Conversation]:
    """``messages`` [{role, content}], perhaps ``document`` and ``answers`` (ChatQA, ChatQA2)."""
    yield from _dialogue(row, _turns(row, "messages", "role", "content"))


def _sharegpt(row: Row) -> Iterator[Conversation]:
    """``conversations`` [{from, value}] (ShareGPT; OpenHermes-2.5 and others)."""
    turns = _as_list(row["conversations"])
    old = isinstance(turns, Sequence) and bool(turns) and "from" in turns[0]
    named = ("from", "value") if old else ("role", "content")
    yield from _dialogue(row, _turns(row, "conversations", *named))


def _pair(row: Row) -> Iterator[Conversation]:
    """``prompt`` and ``response`` (Chinese-Instruct)."""
    prompt = _need(row, "prompt", "query", "question", reason="no_prompt")
    answer = _answer(row)
    if answer is None:
        raise Dropped("no_response")
    messages = [*_system(row), Message("user", prompt), _message("assistant", answer)]
    yield Conversation(tuple(messages), _text(row, "document", "context"))


def _alpaca(row: Row) -> Iterator[Conversation]:
    """``instruction``, ``input``, ``output``; perhaps ``history`` [[question, answer], ...]."""
    prompt = _need(row, "instruction", reason="no_prompt")
    extra = _text(row, "input")
    messages = _system(row)
    for pair in row.get("history") or []:
        messages += [Message("user", str(pair[0])), _message("assistant", pair[1])]
    messages.append(Message("user", prompt if extra is None else f"{prompt}\n\n{extra}"))
    messages.append(_message("assistant", _need(row, "output", reason="no_response")))
    yield Conversation(tuple(messages))


def _context_qa(row: Row) -> Iterator[Conversation]:
    """``question``, ``answer(s)`` and ``context``; or ``qas``, several questions about it."""
    document = _passages(row) or _need(
        row, "context", "document", "passage", "text", reason="no_document"
    )
    title = _text(row, "title")
    if title is not None:
        document = f"{title}\n\n{document}"
    questions = row.get("qas") or [row]
    for asked in questions:
        question = _text(asked, "question", "query")
        answer = _answer(asked)
        if question is None or answer is None:
            continue
        messages = (Message("user", question), Message("assistant", answer))
        yield Conversation(messages, document)


def _passages(row: Row) -> str | None:
    """Several passages as one document, each under its title (HotpotQA, DuReader)."""
    listed = row.get("paragraphs") or row.get("documents") or row.get("passages")
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        return None
    parts = []
    for passage in listed:
        if isinstance(passage, str):
            parts.append(passage)
        elif isinstance(passage, Mapping):
            text = passage.get("text") or "\n".join(passage.get("paragraphs") or [])
            title = passage.get("title")
            parts.append(f"{title}\n{text}" if title else text)
    return "\n\n".join(parts) or None


def _plain(row: Row) -> Iterator[Conversation]:
    """``text`` and no conversation: what builders plant facts in."""
    yield Conversation((), _need(row, "text", "content", reason="no_text"))


FORMS: dict[str, Callable[[Row], Iterator[Conversation]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "pair": _pair,
    "alpaca": _alpaca,
    "context_qa": _context_qa,
    "text": _plain,
}
"""Forms by name."""


def recognise(row: Row) -> str:
    """The form of a row, by its keys.

    Raises:
        AllMemError: if no form fits.
    """
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "instruction" in row and "output" in row:
        return "alpaca"
    asks = "question" in row or "query" in row
    about = ("context", "qas", "paragraphs", "documents", "passages", "passage", "document", "text")
    if (asks or "qas" in row) and any(name in row for name in about):
        return "context_qa"
    if "prompt" in row or asks:
        return "pair"
    if "text" in row:
        return "text"
    raise AllMemError(
        f"no known form has the fields {', '.join(sorted(map(str, row)))}; name the form "
        f"({', '.join(FORMS)}) and map its fields, such as fields: {{prompt: query}}"
    )


def conversations(
    row: Row, form: str | None, fields: Mapping[str, str] | None, source: str, number: int
) -> Iterator[Conversation]:
    """The conversations of a row: usually one, more where a row asks several questions.

    Args:
        form: a name in ``FORMS``; ``None`` to recognise it.
        fields: names that the form knows -> names in the rows, also of the entries of ``qas``.
        source: of the row, for the table of counts.
        number: of the row in its source, from 1: part of the conversation's id.

    Raises:
        Dropped: if the row lacks what its form needs.
        AllMemError: if the form is unknown.
    """
    if fields:
        row = _renamed(row, fields)
    name = form or recognise(row)
    if name not in FORMS:
        raise AllMemError(unknown_name("form", name, FORMS))
    made = list(FORMS[name](row))
    if not made:
        raise Dropped("no_response", "no question of the row has an answer")
    own = row.get("id")
    base = str(own) if isinstance(own, str | int) else str(number)
    for i, one in enumerate(made):
        ident = base if len(made) == 1 else f"{base}.{i}"
        yield Conversation(one.messages, one.document, source, ident)


def _renamed(row: Row, fields: Mapping[str, str]) -> dict[str, Any]:
    out = {**row, **{ours: row[theirs] for ours, theirs in fields.items() if theirs in row}}
    if isinstance(out.get("qas"), Sequence):
        out["qas"] = [
            {**q, **{ours: q[theirs] for ours, theirs in fields.items() if theirs in q}}
            for q in out["qas"]
            if isinstance(q, Mapping)
        ]
    return out
