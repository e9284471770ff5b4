"""``/v1/chat/completions``."""

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
from allmem.serving.server.requests import ChatRequest, Message
from allmem.serving.server.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    ChatToken,
    Delta,
    TokenLogprob,
)
from allmem.serving.server.service import Service
from allmem.serving.server.spelling import Spelling, finite

__all__ = ["chat_routes"]


def chat_routes(service: Service) -> APIRouter:
    """The endpoint, for one service."""
    routes = APIRouter()

    @routes.post(
        "/v1/chat/completions",
        summary="Answer a conversation.",
        response_model=ChatCompletion,
        responses=responses(streams=True),
    )
    async def chat(asked: ChatRequest, request: Request) -> Response:
        service.check_name(asked.model)
        reply = await unless_gone(request.receive, _plan(service, asked))
        return await respond(reply, request, bool(asked.stream))

    return routes


async def _plan(service: Service, asked: ChatRequest) -> _ChatReply:
    continued = bool(asked.continue_final_message)
    _check(asked, continued)
    options: dict[str, Any] = {"enable_thinking": service.thinking}
    options |= asked.chat_template_kwargs or {}
    prompt = await service.encoder.conversation(
        [(_role(message), message.text()) for message in asked.messages],
        answer=asked.add_generation_prompt is not False,
        continued=continued,
        options=options,
    )
    limit = asked.max_completion_tokens or asked.max_tokens or service.limits.max_tokens
    answers = plan(
        service.model,
        service.limits,
        asked,
        [prompt],
        max_tokens=limit,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        thinking=bool(options["enable_thinking"]),
        continued=continued,
    )
    return _ChatReply(service, answers, len(prompt), asked.wants_usage)


def _check(asked: ChatRequest, continued: bool) -> None:
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
    if continued and asked.add_generation_prompt:
        raise ApiError(
            "continue_final_message goes on with the last message, add_generation_prompt begins a "
            "new one; choose one of them",
            param="continue_final_message",
        )


def _role(message: Message) -> str:
    # OpenAI's newer name, which chat templates do not know.
    return "system" if message.role == "developer" else message.role


class _ChatReply(Reply[ChatCompletion, ChatChunk]):
    prefix = "chatcmpl"

    async def whole(self) -> ChatCompletion:
        choices = [self._choice(i, piece) for i, piece in enumerate(await self.written())]
        return ChatCompletion(**self.head(), choices=choices, usage=self.usage())

    async def chunks(self) -> AsyncGenerator[ChatChunk, None]:
        head = self.head()

        def chunk(i: int, delta: Delta, **more: Any) -> ChatChunk:
            return ChatChunk(**head, choices=[ChatChunkChoice(index=i, delta=delta, **more)])

        begun = set()
        async with aclosing(self.service.write(self.answers)) as pieces:
            async for i, piece in pieces:
                if i not in begun:
                    begun.add(i)
                    yield chunk(i, Delta(role="assistant", content=""))
                if piece.text or piece.tokens:
                    logprobs = self._logprobs(piece.tokens)
                    yield chunk(i, Delta(content=piece.text), logprobs=logprobs)
                if piece.finish:
                    yield chunk(i, Delta(), finish_reason=piece.finish)
        if self.with_usage:
            yield ChatChunk(**head, choices=[], usage=self.usage())

    def _choice(self, i: int, piece: Piece) -> ChatChoice:
        assert piece.finish is not None, "an engine ends every answer"
        return ChatChoice(
            index=i,
            message=ChatMessage(content=piece.text),
            logprobs=self._logprobs(piece.tokens),
            finish_reason=piece.finish,
        )

    def _logprobs(self, tokens: Sequence[ToldToken]) -> ChatLogprobs | None:
        if self.answers[0].request.logprobs is None:
            return None
        return ChatLogprobs(content=[_spelled(self.service.spelling, told) for told in tokens])


def _spelled(spelling: Spelling, told: ToldToken) -> ChatToken:
    def one(token: int, logprob: float | None) -> dict[str, Any]:
        return {
            "token": spelling.text(token),
            "logprob": finite(logprob),
            "bytes": spelling.bytes(token),
        }

    top = [TokenLogprob(**one(token, logprob)) for token, logprob in told.token.top]
    return ChatToken(**one(told.token.id, told.token.logprob), top_logprobs=top)
