"""A conversation as tokens under a model's chat template, with the response tokens marked.

The template is rendered once for each pattern of roles, with placeholders for the texts, and cut
at them. The pieces are tokenised as ``allmem.prompts`` does when the model is used: what people
wrote is never parsed for control tokens; a document, the question after it, and a response each
begin with a token of their own. So a token belongs to a response or it does not: none straddles
the border, and a response is tokenised as the model itself would have written it.

**A response** is what the model has to write after the template's generation prompt: its thinking
if the template shows it, its text, and the control token that ends the turn. The empty thinking
block that Qwen3 puts before an answer without thoughts belongs to the prompt, as it does when the
model is used with ``enable_thinking=False``.

It knows tokenizers, not lengths, files or models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from allmem.data.conversation import Conversation, Dropped
from allmem.errors import AllMemError
from allmem.prompts import BETWEEN, plain_ids

__all__ = ["ChatEncoder", "Kind", "Piece"]

Kind = Literal["control", "system", "document", "prompt", "response"]

PLACE = re.compile(r"ALLMEM(CONTENT|THINKING)(\d+)PLACE")


@dataclass
class Piece:
    """Tokens that stand together: all learned or none, and all may be cut or none."""

    kind: Kind
    ids: list[int]
    text: str
    """What the tokens say."""


@dataclass(frozen=True)
class _Part:
    """A stretch of the rendered template: its own text, or the place of a text of a message."""

    kind: Kind
    text: str = ""
    turn: int = -1
    thinking: bool = False


Shape = tuple[tuple[str, bool], ...]
"""The role of each message, and whether it holds thinking."""


class ChatEncoder:
    """Tokenises conversations for one tokenizer and chat template.

    Args:
        tokenizer: with a chat template.
        responses: ``all`` turns of the assistant are learned, or the ``last`` one only.
        thinking: ``drop`` leaves the assistant's thinking out.

    Raises:
        AllMemError: if the template is missing, has no generation prompt, or does not end a turn
            with a control token.
    """

    def __init__(
        self,
        tokenizer: Any,
        responses: Literal["all", "last"] = "all",
        thinking: Literal["keep", "drop"] = "keep",
    ) -> None:
        self.tokenizer = tokenizer
        self.responses = responses
        self.thinking = thinking
        if not tokenizer.chat_template:
            raise AllMemError(
                "the tokenizer has no chat template; name an instruct model, or give a template "
                "file"
            )
        added = tokenizer.added_tokens_decoder
        special = [t.content for t in added.values() if t.special]
        if not special:
            raise AllMemError("the tokenizer has no control tokens, so turns cannot end")
        self._added_ids = {token.content: ident for ident, token in added.items()}
        # Longest first, or <|im_start|> would never match where <|im| is a token too.
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        self._added = re.compile(
            "|".join(map(re.escape, sorted(self._added_ids, key=len, reverse=True)))
        )
        self._parts = lru_cache(maxsize=1024)(self._parts_of)
        # Rows that follow each other often ask about one document.
        self._document_ids = lru_cache(maxsize=4)(lambda text: plain_ids(tokenizer, text))
        self._control_ids = lru_cache(maxsize=1024)(
            lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        )
        self.shows_thinking = "THINKING" in self._placed((("user", False), ("assistant", True)))
        prompt = self._placed((("user", False),), generation=True)
        if prompt == self._placed((("user", False),)):
            raise AllMemError(
                "the chat template has no generation prompt (it ignores add_generation_prompt), so "
                "where a response begins is unknown; use the template of an instruct model"
            )
        try:
            self._parts((("user", False), ("assistant", False)))
        except Dropped as error:
            raise AllMemError(f"the chat template cannot be used: {error.detail}") from error

    def encode(self, conversation: Conversation) -> list[Piece]:
        """The pieces of a conversation, in order: their ids joined are the input.

        Raises:
            Dropped: if there is no response, or the template refuses or alters the conversation.
        """
        turns = self._turns(conversation)
        if not any(turn["role"] == "assistant" for turn in turns):
            raise Dropped("no_response")
        shape = tuple((t["role"], "reasoning_content" in t) for t in turns)
        parts = self._parts(shape)
        self._check_unaltered(turns, parts)
        last = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        pieces: list[Piece] = []
        for run in _runs(parts):
            kind, text = run[0].kind, ""
            if kind == "response":
                if self.responses == "last" and not any(part.turn == last for part in run):
                    kind = "control"
                pieces.append(self._response(kind, run, turns))
                continue
            for part in run:
                text = part.text if part.turn < 0 else turns[part.turn]["content"]
                if kind == "control":
                    pieces.append(Piece(kind, list(self._control_ids(text)), text))
                else:
                    pieces += self._written(kind, text, conversation, part.turn)
        return pieces

    def _turns(self, conversation: Conversation) -> list[dict[str, str]]:
        """Messages as templates take them."""
        turns = []
        document = conversation.document
        for message in conversation.messages:
            content = message.content.strip()
            turn = {"role": message.role, "content": content}
            if message.role == "user" and document:
                turn["content"] = f"{document.strip()}{BETWEEN}{content}"
                document = None
            if message.thinking and self.thinking == "keep":
                if self.shows_thinking:
                    turn["reasoning_content"] = message.thinking.strip()
                else:
                    turn["content"] = f"<think>\n{message.thinking.strip()}\n</think>\n\n{content}"
            turns.append(turn)
        return turns

    def _written(self, kind: Kind, text: str, conversation: Conversation, turn: int) -> list[Piece]:
        """The pieces of a system or user message: document and question apart."""
        first = next((i for i, m in enumerate(conversation.messages) if m.role == "user"), -1)
        document = (conversation.document or "").strip()
        if turn != first or not document:
            return [Piece(kind, plain_ids(self.tokenizer, text), text)]
        rest = text[len(document) :]
        return [
            Piece("document", list(self._document_ids(document)), document),
            Piece(kind, plain_ids(self.tokenizer, rest), rest),
        ]

    def _response(self, kind: Kind, run: list[_Part], turns: list[dict[str, str]]) -> Piece:
        """Template text within a response is cut into control tokens and text; what lies between
        two control tokens is tokenised in one piece, as the model writes it."""
        ids: list[int] = []
        said, pending = "", ""
        for part in run:
            if part.turn >= 0:
                key = "reasoning_content" if part.thinking else "content"
                pending += turns[part.turn][key]
                continue
            end = 0
            for found in self._added.finditer(part.text):
                pending += part.text[end : found.start()]
                ids += plain_ids(self.tokenizer, pending) if pending else []
                ids.append(self._added_ids[found[0]])
                said += pending + found[0]
                pending, end = "", found.end()
            pending += part.text[end:]
        ids += plain_ids(self.tokenizer, pending) if pending else []
        return Piece(kind, ids, said + pending)

    # The template

    def _render(self, turns: list[dict[str, str]], **options: Any) -> str:
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, **options)
        except Exception as error:
            # Templates raise errors of their own (jinja2's) for roles and orders that they refuse.
            lines = str(error).strip().splitlines()
            raise Dropped("refused_by_template", lines[0] if lines else "") from error

    def _placed(self, shape: Shape, *, generation: bool = False, thinking: bool = False) -> str:
        """The template with placeholders for all texts."""
        turns = []
        for i, (role, thinks) in enumerate(shape):
            turn = {"role": role, "content": f"ALLMEMCONTENT{i}PLACE"}
            if thinks:
                turn["reasoning_content"] = f"ALLMEMTHINKING{i}PLACE"
            turns.append(turn)
        # Templates that know no `enable_thinking` ignore it.
        return self._render(turns, add_generation_prompt=generation, enable_thinking=thinking)

    def _parts_of(self, shape: Shape) -> tuple[_Part, ...]:
        """The rendered template, cut at its placeholders and at the borders of the responses."""
        whole = self._placed(shape)
        places = list(PLACE.finditer(whole))
        shown = [int(found[2]) for found in places if found[1] == "CONTENT"]
        if shown != list(range(len(shape))):
            raise Dropped("altered_by_template", "it does not show every message once, in order")
        parts: list[_Part] = []
        at = 0
        for i, (role, _) in enumerate(shape):
            mine = [found for found in places if int(found[2]) == i]
            following = next((f.start() for f in places if int(f[2]) > i), len(whole))
            if role != "assistant":
                parts.append(_Part("control", whole[at : mine[0].start()]))
                kind: Kind = "system" if role == "system" else "prompt"
                parts.append(_Part(kind, turn=i))
                at = mine[0].end()
                continue
            begin = self._response_start(whole, shape[:i], mine)
            parts.append(_Part("control", whole[at:begin]))
            at = begin
            for found in mine:
                parts.append(_Part("response", whole[at : found.start()]))
                parts.append(_Part("response", turn=i, thinking=found[1] == "THINKING"))
                at = found.end()
            end = self._special.search(whole, at, following)
            if end is None or whole[at : end.start()].strip():
                raise Dropped(
                    "refused_by_template", "it does not end a response with a control token"
                )
            parts.append(_Part("response", whole[at : end.end()]))
            at = end.end()
        parts.append(_Part("control", whole[at:]))
        return tuple(part for part in parts if part.text or part.turn >= 0)

    def _response_start(self, whole: str, before: Shape, mine: list[re.Match[str]]) -> int:
        """Where the generation prompt ends; at the text itself where history is rendered unlike it
        (Qwen3 shows no thinking block in earlier turns)."""
        first = mine[0].start()
        fits = []
        for thinking in (False, True):
            prompt = self._placed(before, generation=True, thinking=thinking)
            if whole.startswith(prompt) and len(prompt) <= first:
                fits.append(len(prompt))
        if fits:
            return max(fits)
        return first

    def _check_unaltered(self, turns: list[dict[str, str]], parts: tuple[_Part, ...]) -> None:
        """Templates may treat some texts in ways of their own (tool answers, thinking tags)."""
        put = [
            part.text
            if part.turn < 0
            else turns[part.turn]["reasoning_content" if part.thinking else "content"]
            for part in parts
        ]
        if "".join(put) != self._render(turns, enable_thinking=False):
            raise Dropped("altered_by_template", "it does not show the texts as they are")


def _runs(parts: tuple[_Part, ...]) -> list[list[_Part]]:
    """Parts of one kind that follow each other; a response reaches to the end of its turn."""
    runs: list[list[_Part]] = []
    for part in parts:
        if runs and runs[-1][0].kind == part.kind == "response":
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs
