"""Answers what a prompt looks like as text and tokens, for any model whose files are here.

The model need not be loaded: its tokenizer is read on request.
"""

import asyncio
import logging
from collections.abc import Callable

from neuron.files import sources
from neuron.service.jobs.prompt import Prompter
from neuron.service.jobs.prompters import Prompters
from neuron.service.residents.offers import Offer
from protocol import codec
from protocol.bus import Bus, BusMessage
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.render import Render, Rendered

log = logging.getLogger("neuron")

AT_ONCE = 2
"""Requests handled at the same time; each long prompt takes a core."""

OfferOf = Callable[[str], Offer | None]
LimitOf = Callable[[str], int]
"""Returns a loaded model's context limit; 0 = the model is not loaded."""


class RenderService:
    """The render endpoint of one node."""

    def __init__(
        self, node: str, bus: Bus, prompters: Prompters, offer_of: OfferOf, limit_of: LimitOf
    ) -> None:
        self._node = node
        self._bus = bus
        self._offer_of = offer_of
        self._limit_of = limit_of
        self._prompters = prompters
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def asked(self, message: BusMessage) -> None:
        """Handles a message on ``cortex.node.<node>.render``."""
        task = asyncio.create_task(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: BusMessage) -> None:
        try:
            async with self._turns:
                rendered = await self._rendered(codec.read_render(message.data))
        except codec.UnreadableMessage as error:
            log.warning("ignored an unreadable render request: %s", error)
            return
        except FleetError as error:
            rendered = Rendered(error=error.error)
        except Exception:
            log.exception("rendering a prompt failed")
            text = f"Node {self._node} failed to render the prompt; its log has the details."
            rendered = Rendered(error=WireError(ErrorCode.INTERNAL, text))
        data = codec.encode(rendered)
        if len(data) > self._bus.max_payload_bytes:
            text = (
                f"The answer has {len(data)} bytes, but a message on the bus may have at most "
                f"{self._bus.max_payload_bytes}. Send less text."
            )
            data = codec.encode(Rendered(error=WireError(ErrorCode.REQUEST_TOO_LARGE, text)))
        await self._bus.publish(message.reply, data)

    async def _rendered(self, asked: Render) -> Rendered:
        model = asked.request.model
        prompter = await self._prompter(model)
        found = await prompter.render(asked.request, asked.rendered_at)
        pieces: tuple[str, ...] = ()
        if asked.pieces:
            raw = (prompter.tokenizer.token_bytes(token) for token in found.tokens)
            pieces = tuple(piece.decode(errors="replace") for piece in raw)
        return Rendered(tuple(found.tokens), found.text, pieces, self._limit_of(model))

    async def _prompter(self, model: str) -> Prompter:
        offer = self._offer_of(model)
        folder = await asyncio.to_thread(sources.local_folder, offer.source) if offer else None
        if offer is None or folder is None:
            raise FleetError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"Node {self._node} does not have the files of {model}. Try again, or pull the "
                "model.",
                retry_after_seconds=5,
            )
        return await self._prompters.get(folder, offer.profile.tool_calls)
