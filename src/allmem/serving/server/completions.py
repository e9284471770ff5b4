"""``/v1/completions``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from allmem.serving.server.answer import Piece, ToldToken
from allmem.serving.server.errors import ApiError
from allmem.serving.server.events import unless_gone
from allmem.serving.server.planning import plan
from allmem.serving.server.replying import Reply, respond, responses
from allmem.serving.server.requests import CompletionRequest
from allmem.serving.server.responses import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
)
from allmem.serving.server.service import Service
from allmem.serving.server.spelling import finite

__all__ = ["completion_routes"]

MAX_TOKENS = 16
"""Where a client names none, as in OpenAI's API."""


def completion_routes(service: Service) -> APIRouter:
    """The endpoint, for one service."""
    routes = APIRouter()

    @routes.post(
        "/v1/completions",
        summary="Continue texts.",
        response_model=Completion,
        responses=responses(streams=True),
    )
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        service.check_name(asked.model)
        reply = await unless_gone(request.receive, _plan(service, asked))
        return await respond(reply, request, bool(asked.stream))

    return routes


async def _plan(service: Service, asked: CompletionRequest) -> _CompletionReply:
    begin = asked.add_special_tokens is not False
    prompts = [
        await service.encoder.text(prompt, begin) if isinstance(prompt, str) else prompt
        for prompt in _prompts(asked, service.limits.max_choices)
    ]
    answers = plan(
        service.model,
        service.limits,
        asked,
        prompts,
        max_tokens=asked.max_tokens or min(MAX_TOKENS, service.limits.max_tokens),
        logprobs=asked.logprobs,
    )
    return _CompletionReply(service, answers, sum(map(len, prompts)), asked.wants_usage)


def _prompts(asked: CompletionRequest, most: int) -> list[str | list[int]]:
    """The prompts, of which there may be one or several, as text or as token ids."""
    if isinstance(asked.prompt, str):
        return [asked.prompt]
    # By its type, the list is either a prompt's token ids or several prompts.
    several: list[Any] = [asked.prompt] if isinstance(asked.prompt[0], int) else asked.prompt
    if len(several) > most:
        # Before all of them are tokenized.
        raise ApiError(
            f"{len(several)} prompts are more than this server takes at once ({most})",
            param="prompt",
        )
    return several


class _CompletionReply(Reply[Completion, Completion]):
    prefix = "cmpl"

    async def whole(self) -> Completion:
        choices = [self._choice(i, written) for i, written in enumerate(await self.written())]
        return Completion(**self.head(), choices=choices, usage=self.usage())

    async def chunks(self) -> AsyncGenerator[Completion, None]:
        head = self.head()
        async with aclosing(self.service.write(self.answers)) as pieces:
            async for i, piece in pieces:
                yield Completion(**head, choices=[self._choice(i, piece)])
        if self.with_usage:
            yield Completion(**head, choices=[], usage=self.usage())

    def _choice(self, i: int, piece: Piece) -> CompletionChoice:
        return CompletionChoice(
            index=i,
            text=piece.text,
            logprobs=self._logprobs(piece.tokens),
            finish_reason=piece.finish,
        )

    def _logprobs(self, tokens: Sequence[ToldToken]) -> CompletionLogprobs | None:
        top = self.answers[0].request.logprobs
        if top is None:
            return None
        spelling = self.service.spelling
        return CompletionLogprobs(
            tokens=[spelling.text(told.token.id) for told in tokens],
            token_logprobs=[finite(told.token.logprob) for told in tokens],
            top_logprobs=[
                {spelling.text(token): finite(logprob) for token, logprob in told.token.top}
                for told in tokens
            ]
            if top
            else None,
            text_offset=[told.offset for told in tokens],
        )
