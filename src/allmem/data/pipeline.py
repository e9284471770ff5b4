"""One conversation on its way to a sample: clean, filter, compare, tokenise, cut, classify.

Every sample that is left out raises ``Dropped`` with its reason; counting is the build's business.
It knows no files and no shards.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from allmem.data.chat import ChatEncoder
from allmem.data.cleaning import clean_conversation
from allmem.data.config import DataConfig
from allmem.data.conversation import Conversation, Dropped
from allmem.data.duplicates import Seen
from allmem.data.filters import Filters
from allmem.data.fitting import Sample, fit, to_sample
from allmem.errors import AllMemError

__all__ = ["Pipeline", "load_chat_tokenizer", "tokenizer_hash"]


def load_chat_tokenizer(model: str, template: str | None = None) -> Any:
    """A model's tokenizer, with a template from a file in place of its own.

    Raises:
        AllMemError: if either cannot be read.
    """
    from allmem.models.sources import load_tokenizer
    from allmem.opening import resolve

    tokenizer = load_tokenizer(resolve(model))
    if template is not None:
        try:
            tokenizer.chat_template = Path(template).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise AllMemError(f"cannot read the template {template}: {error}") from error
    if not tokenizer.is_fast:
        raise AllMemError(f"{model} has no fast tokenizer (tokenizer.json), which masks need")
    # The library warns of texts longer than the model's context, which are this one's purpose.
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def tokenizer_hash(tokenizer: Any) -> str | None:
    """A short hash of everything that decides a fast tokenizer's ids; ``None`` for a slow one."""
    written = getattr(tokenizer, "backend_tokenizer", None)
    return None if written is None else hashlib.sha256(written.to_str().encode()).hexdigest()[:16]


class Pipeline:
    """The steps of one build, and what was seen so far.

    Args:
        tokenizer: with a chat template.

    Raises:
        AllMemError: if the template cannot be masked, or a filter is wrong.
    """

    def __init__(self, config: DataConfig, tokenizer: Any) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.encoder = ChatEncoder(tokenizer, config.responses, config.thinking)
        self.filters = Filters(config.parsed_filters)
        self.seen = Seen(config.duplicates, config.similarity)
        self._lengths = dict(config.classes)

    def __call__(self, conversation: Conversation, length: str | None = None) -> tuple[str, Sample]:
        """The length class and the sample.

        Args:
            length: the class that the sample shall have; ``None`` for the smallest that it fits,
                or else the largest.

        Raises:
            Dropped: with the reason.
        """
        # What a builder made is as it should be: cleaning would move what it measured.
        if not conversation.whole:
            conversation = self.filters(clean_conversation(conversation))
        self.seen.check(conversation)
        pieces = self.encoder.encode(conversation)
        size = sum(len(piece.ids) for piece in pieces)
        rules = self.filters.config
        if size < rules.min_tokens:
            raise Dropped("too_few_tokens")
        if rules.max_tokens is not None and size > rules.max_tokens:
            raise Dropped("too_many_tokens")
        if length is None:
            length = next(
                (name for name, limit in self._lengths.items() if size <= limit),
                list(self._lengths)[-1],
            )
        limit = self._lengths[length]
        if size > limit:
            if conversation.whole:
                raise Dropped("built_too_long")
            config = self.config
            pieces = fit(pieces, limit, self.tokenizer, config.cut, config.long_response)
        sample = to_sample(pieces, conversation.source, conversation.id, cut=size > limit)
        return length, sample
