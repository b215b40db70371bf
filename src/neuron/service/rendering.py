"""Answers what a prompt looks like as text and tokens, for any model whose files are here.

The model need not be loaded: its tokenizer is read on request.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable

from neuron.files import sources
from neuron.service.jobs.unread import model_of_render
from neuron.service.residents.offers import Offer
from neuron.service.texts.model_texts import LARGE_BYTES
from neuron.service.texts.shelf import Shelf
from protocol import codec
from protocol.bus import Bus, BusMessage
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.render import Rendered
from protocol.runtime.sizes import size_text

log = logging.getLogger("neuron")

AT_ONCE = 2
"""Requests of one model and kind handled at the same time, so that one is always ready for its text
process, and prompts of answers wait for two of them at most."""
MAX_WAITING = 512
MAX_WAITING_BYTES = 64 << 20
"""What all requests that wait may hold together."""
PATIENCE_SECONDS = 10.0
BYTES_PER_SECOND = 100_000
"""How long gateways wait for an answer, and how much longer for a long prompt."""

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
        self._turns = defaultdict[tuple[str, bool], asyncio.Semaphore](
            lambda: asyncio.Semaphore(AT_ONCE)
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting_bytes = 0

    def asked(self, message: BusMessage) -> None:
        """Handles a message on ``cortex.node.<node>.render``."""
        task = asyncio.create_task(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: BusMessage) -> None:
        size = len(message.data)
        self._waiting_bytes += size
        try:
            data = await self._rendered(message.data)
        except codec.UnreadableMessage as error:
            log.warning("ignored an unreadable render request: %s", error)
            return
        except FleetError as error:
            data = _refusal(error.error)
        except Exception:
            log.exception("rendering a prompt failed")
            text = f"Node {self._node} failed to render the prompt; its log has the details."
            data = _refusal(WireError(ErrorCode.INTERNAL, text))
        finally:
            self._waiting_bytes -= size
        if data:
            await self._bus.publish(message.reply, data)

    def _check_room(self) -> None:
        if len(self._tasks) > MAX_WAITING or self._waiting_bytes > MAX_WAITING_BYTES:
            raise FleetError(
                ErrorCode.OVERLOADED,
                f"Node {self._node} has {len(self._tasks)} prompts of "
                f"{size_text(self._waiting_bytes)} to count or to render, and takes at most "
                f"{MAX_WAITING} of {size_text(MAX_WAITING_BYTES)}. Try again in a moment.",
                retry_after_seconds=2,
            )

    async def _rendered(self, data: bytes) -> bytes:
        """The answer; empty when nobody waits for it any more."""
        self._check_room()
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
        arrived = time.monotonic()
        async with self._turns[model, len(data) > LARGE_BYTES]:
            if time.monotonic() - arrived > PATIENCE_SECONDS + len(data) / BYTES_PER_SECOND:
                return b""
            async with self._shelf.use(folder, offer.profile.tool_calls) as texts:
                limits = (self._limit_of(model), self._bus.max_payload_bytes)
                return await texts.render(data, model, *limits)


def _refusal(error: WireError) -> bytes:
    return codec.encode(Rendered(error=error))
