"""Asks a node what a prompt looks like in text and tokens; no model is loaded for it."""

import asyncio
import logging
import time
from typing import NamedTuple

import msgspec

from cortex.dispatch import refusals, router
from cortex.dispatch.decisions import Decisions
from cortex.fleet.catalogue import Catalogue
from cortex.fleet.state import Fleet
from protocol import codec, subjects
from protocol.bus import Bus
from protocol.bus.connection import BusOverflow
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.fleet import ModelState
from protocol.generate import GenerateRequest
from protocol.render import Render, Rendered

log = logging.getLogger("dispatch")

ANSWER_SECONDS = 10.0
"""Limit of the wait for an answer; the node may have to read a tokenizer first."""
BYTES_PER_SECOND = 100_000
"""Longer prompts may take longer: a node refuses what takes longer than half of that by itself."""
LOOK_SECONDS = 1.0
"""Time between two looks at whether the node that was asked is still there."""
NODES_ASKED = 3


_EMPTY = msgspec.Raw(b"[]")


class PassedOn(Rendered, frozen=True, omit_defaults=True):
    """A node's answer whose lists, which may be megabytes, stay the bytes that arrived."""

    tokens: msgspec.Raw = _EMPTY  # type: ignore[assignment]
    pieces: msgspec.Raw = _EMPTY  # type: ignore[assignment]

    @property
    def count(self) -> int:
        """The number of tokens."""
        listed = bytes(self.tokens).strip()
        return listed.count(b",") + 1 if listed != b"[]" else 0


_read = codec.Reader[PassedOn](PassedOn)


class RenderClient(NamedTuple):
    """Renders prompts on the nodes that have the model's files."""

    bus: Bus
    fleet: Fleet
    catalogue: Catalogue
    decisions: Decisions

    async def render(self, request: GenerateRequest, *, pieces: bool = False) -> PassedOn:
        """Renders the prompt of *request*. Raises ``FleetError`` when it has none, or when no node
        can tell."""
        model = self.catalogue.resolve(request.model, self.fleet)
        request = self.catalogue.applied(request, self.fleet)
        data = codec.encode(Render(request, time.time(), pieces))
        busy: WireError | None = None
        for node in self._nodes(model)[:NODES_ASKED]:
            try:
                answer = await self._asked(node, model, data)
            except BusOverflow as error:
                raise FleetError.of(refusals.prompt_is_too_large(error.size, error.limit)) from None
            if answer is None:
                continue
            try:
                rendered = _read(answer)
            except codec.UnreadableMessage as error:
                log.warning("ignored an unreadable answer of node %s: %s", node, error)
                continue
            if rendered.error is None:
                return rendered
            if rendered.error.code is ErrorCode.OVERLOADED:
                busy = rendered.error
            elif rendered.error.code is not ErrorCode.MODEL_UNAVAILABLE:
                raise FleetError.of(rendered.error)
        if busy is not None:
            raise FleetError.of(busy)
        decision = self.decisions.decide(model)
        if isinstance(decision, router.Refuse):
            raise FleetError.of(decision.error)
        raise FleetError.of(refusals.no_node_renders(request.model))

    async def _asked(self, node: str, model: str, data: bytes) -> bytes | None:
        """The node's answer; None when it is gone. Raises ``FleetError`` when it is there and has
        taken too long over a long prompt: another one would take as long."""
        seconds = ANSWER_SECONDS + len(data) / BYTES_PER_SECOND
        subject = subjects.node_verb(node, "render")
        began = time.monotonic()
        asking = asyncio.create_task(self.bus.request(subject, data, timeout=seconds))
        try:
            while not asking.done() and node in self._nodes(model):
                await asyncio.wait([asking], timeout=LOOK_SECONDS)
            answer = asking.result() if asking.done() else None
        finally:
            asking.cancel()
        took = time.monotonic() - began
        if answer is None and took > seconds - LOOK_SECONDS and len(data) > BYTES_PER_SECOND:
            raise FleetError.of(refusals.rendering_took_too_long(model, node, len(data), took))
        return answer

    def _nodes(self, model: str) -> list[str]:
        """Lists the nodes to ask, those that have it loaded first."""
        records = [r for r in self.fleet.records(model) if r.has_files]
        return [
            r.node for r in sorted(records, key=lambda r: (r.state is not ModelState.READY, r.node))
        ]
