"""Endpoints about prompts: how many tokens they have, which ones, and the text that the model
reads."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex.api.dialects.chat.decode import decode_chat
from cortex.api.dialects.messages.decode import decode_count
from cortex.api.dialects.request_fields import TokenId, checked_model, invalid, read
from cortex.api.dialects.responses.decode import decode_responses
from cortex.api.error_responses import Style
from cortex.api.http import BodyReader, ClientGone, send_error, send_json, watching_disconnect
from cortex.dispatch.render_client import RenderClient
from protocol.errors import FleetError
from protocol.generate import GenerateRequest


class TokenizeRequest(Struct, frozen=True):
    """The body of ``POST /tokenize``: a prompt or a conversation."""

    model: Annotated[str, Meta(min_length=1)]
    prompt: str | None = None
    messages: Any = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct, frozen=True):
    """The body of ``POST /detokenize``."""

    model: Annotated[str, Meta(min_length=1)]
    tokens: list[TokenId]


_TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeRequest)

Work = Callable[[bytes], Awaitable[object]]


class Tokenization:
    """The endpoints about prompts."""

    def __init__(self, prompts: RenderClient, bodies: BodyReader) -> None:
        self._prompts = prompts
        self._bodies = bodies

    def tokenize(self) -> ASGIApp:
        """``POST /tokenize``: the tokens of a text or a conversation."""

        async def work(body: bytes) -> object:
            asked = read(_TOKENIZE, body)
            rendered = await self._prompts.render(
                prompt_of(asked, body), pieces=bool(asked.return_token_strs)
            )
            return {
                "count": rendered.count,
                "max_model_len": rendered.context_limit or None,
                "tokens": rendered.tokens,
                "token_strs": rendered.pieces if asked.return_token_strs else None,
            }

        return _Endpoint(self._bodies, work, Style.OPENAI)

    def detokenize(self) -> ASGIApp:
        """``POST /detokenize``: the text of given tokens."""

        async def work(body: bytes) -> object:
            asked = read(_DETOKENIZE, body)
            request = GenerateRequest(checked_model(asked.model), prompt=tuple(asked.tokens))
            return {"prompt": (await self._prompts.render(request)).text}

        return _Endpoint(self._bodies, work, Style.OPENAI)

    def apply_template(self) -> ASGIApp:
        """``POST /apply-template``: the prompt as the chat template renders it."""

        async def work(body: bytes) -> object:
            return {"prompt": (await self._prompts.render(_chat(body))).text}

        return _Endpoint(self._bodies, work, Style.OPENAI)

    def chat_input_tokens(self) -> ASGIApp:
        """``POST /v1/chat/completions/input_tokens``: the length of a chat prompt."""

        async def work(body: bytes) -> object:
            rendered = await self._prompts.render(_chat(body))
            return {"input_tokens": rendered.count}

        return _Endpoint(self._bodies, work, Style.OPENAI)

    def response_input_tokens(self) -> ASGIApp:
        """``POST /v1/responses/input_tokens``: the length of a Responses prompt."""

        async def work(body: bytes) -> object:
            rendered = await self._prompts.render(decode_responses(body).choices[0].request)
            return {"object": "response.input_tokens", "input_tokens": rendered.count}

        return _Endpoint(self._bodies, work, Style.OPENAI)

    def count_tokens(self) -> ASGIApp:
        """``POST /v1/messages/count_tokens``: the length of an Anthropic prompt."""

        async def work(body: bytes) -> object:
            rendered = await self._prompts.render(decode_count(body))
            return {"input_tokens": rendered.count}

        return _Endpoint(self._bodies, work, Style.ANTHROPIC)


def prompt_of(asked: TokenizeRequest, body: bytes) -> GenerateRequest:
    """Decides what to count: a text, or the conversation in *body*."""
    if (asked.prompt is None) == (asked.messages is None):
        raise invalid("prompt: send either a prompt or messages, not both or neither.", "prompt")
    if asked.prompt is None:
        return _chat(body)
    return GenerateRequest(
        checked_model(asked.model),
        prompt=asked.prompt,
        add_special=asked.add_special_tokens is not False,
    )


def _chat(body: bytes) -> GenerateRequest:
    return decode_chat(body).choices[0].request


class _Endpoint:
    """One endpoint; a class, because Starlette would call a plain function with a ``Request``."""

    def __init__(self, bodies: BodyReader, work: Work, style: Style) -> None:
        self._bodies = bodies
        self._work = work
        self._style = style

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._answer(await self._bodies.read(scope, receive), receive)
            await send_json(send, msgspec.json.encode(answer))
        except ClientGone:
            pass
        except FleetError as error:
            await send_error(send, error.error, self._style)

    async def _answer(self, body: bytes, receive: Receive) -> object:
        """Does the work. Raises ``ClientGone`` when the client leaves meanwhile."""
        working = asyncio.ensure_future(self._work(body))
        has_left = False

        def leave() -> None:
            nonlocal has_left
            has_left = True
            working.cancel()

        async with watching_disconnect(receive, leave):
            try:
                return await working
            except asyncio.CancelledError:
                if has_left:
                    raise ClientGone from None
                raise
