"""Asks a node what a prompt looks like in text and tokens; no model is loaded for it."""

import time
from typing import NamedTuple

from cortex.dispatch import refusals, router
from cortex.dispatch.decisions import Decisions
from cortex.fleet.catalogue import Catalogue
from cortex.fleet.state import Fleet
from protocol import codec, subjects
from protocol.bus import Bus
from protocol.bus.connection import BusOverflow
from protocol.errors import ErrorCode, FleetError
from protocol.fleet import ModelState
from protocol.generate import GenerateRequest
from protocol.render import Render, Rendered

ANSWER_SECONDS = 10.0
"""Limit of the wait for an answer; the node may have to read a tokenizer first."""
NODES_ASKED = 3


class RenderClient(NamedTuple):
    """Renders prompts on the nodes that have the model's files."""

    bus: Bus
    fleet: Fleet
    catalogue: Catalogue
    decisions: Decisions

    async def render(self, request: GenerateRequest, *, pieces: bool = False) -> Rendered:
        """Renders the prompt of *request*. Raises ``FleetError`` when it has none, or when no node
        can tell."""
        model = self.catalogue.resolve(request.model, self.fleet.models())
        request = self.catalogue.applied(request, self.fleet.models())
        data = codec.encode(Render(request, time.time(), pieces))
        for node in self._nodes(model)[:NODES_ASKED]:
            subject = subjects.node_verb(node, "render")
            try:
                answer = await self.bus.request(subject, data, timeout=ANSWER_SECONDS)
            except BusOverflow as error:
                raise FleetError.of(refusals.prompt_is_too_large(error.size, error.limit)) from None
            if answer is None:
                continue
            rendered = codec.read_rendered(answer)
            if rendered.error is None:
                return rendered
            if rendered.error.code is not ErrorCode.MODEL_UNAVAILABLE:
                raise FleetError.of(rendered.error)
        decision = self.decisions.decide(model)
        if isinstance(decision, router.Refuse):
            raise FleetError.of(decision.error)
        raise FleetError.of(refusals.no_node_renders(request.model))

    def _nodes(self, model: str) -> list[str]:
        """Lists the nodes to ask, those that have it loaded first."""
        records = [r for r in self.fleet.records(model) if r.has_files]
        return [
            r.node for r in sorted(records, key=lambda r: (r.state is not ModelState.READY, r.node))
        ]
