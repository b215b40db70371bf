"""Answers what a prompt looks like as text and tokens, for any model whose files are here.

The model need not be loaded: its tokenizer is read on request.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable

from neuron.files import sources
from neuron.service.jobs.unread import model_of_render
from neuron.service.residents.offers import Offer
from neuron.service.texts.shelf import Shelf
from protocol import codec
from protocol.bus import Bus, BusMessage
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.render import Rendered

log = logging.getLogger("neuron")

AT_ONCE = 32
"""Requests of one model handled at the same time; they take turns in its text processes."""

OfferOf = Callable[[str], Offer | None]
LimitOf = Callable[[str], int]
"""Returns a loaded model's context limit; 0 = the model is not loaded."""


class RenderService:
    """The render endpoint of one node."""

    def __init__(
        self, node: str, bus: Bus, shelf: Shelf, offer_of: OfferOf, limit_of: LimitOf
    ) -> None:
        self._node = node
        self._bus = bus
        self._offer_of = offer_of
        self._limit_of = limit_of
        self._shelf = shelf
        self._turns = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(AT_ONCE))
        self._tasks: set[asyncio.Task[None]] = set()

    def asked(self, message: BusMessage) -> None:
        """Handles a message on ``cortex.node.<node>.render``."""
        task = asyncio.create_task(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: BusMessage) -> None:
        try:
            data = await self._rendered(message.data)
        except codec.UnreadableMessage as error:
            log.warning("ignored an unreadable render request: %s", error)
            return
        except FleetError as error:
            data = codec.encode(Rendered(error=error.error))
        except Exception:
            log.exception("rendering a prompt failed")
            text = f"Node {self._node} failed to render the prompt; its log has the details."
            data = codec.encode(Rendered(error=WireError(ErrorCode.INTERNAL, text)))
        if len(data) > self._bus.max_payload_bytes:
            text = (
                f"The answer has {len(data)} bytes, but a message on the bus may have at most "
                f"{self._bus.max_payload_bytes}. Send less text."
            )
            data = codec.encode(Rendered(error=WireError(ErrorCode.REQUEST_TOO_LARGE, text)))
        await self._bus.publish(message.reply, data)

    async def _rendered(self, data: bytes) -> bytes:
        model = model_of_render(data)
        offer = self._offer_of(model)
        folder = await asyncio.to_thread(sources.local_folder, offer.source) if offer else None
        if offer is None or folder is None:
            raise FleetError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"Node {self._node} does not have the files of {model}. Try again, or pull the "
                "model.",
                retry_after_seconds=5,
            )
        async with (
            self._turns[model],
            self._shelf.use(folder, offer.profile.tool_calls) as texts,
        ):
            return await texts.render(data, model, self._limit_of(model))
