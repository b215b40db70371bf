"""Admission: whether a request may wait at this gateway, and when it has its turn.

Each model has one queue (``request_queue``), opened as far as the ready nodes have room.
"""

import functools

from cortex.dispatch import router
from cortex.dispatch.client_history import ClientHistory
from cortex.dispatch.decisions import Decisions
from cortex.dispatch.request_queue import RequestQueue, Ticket
from cortex.fleet.state import Fleet
from cortex.placement.demand_writer import WaitingRequests
from protocol.errors import FleetError
from protocol.generate import GenerateRequest
from protocol.job import Priority

USUAL_ANSWER = 512
"""Tokens that an answer without a limit is assumed to have."""
LONGEST_ANSWER = 32_768
"""Tokens that an answer counts with at most: some clients ask for two billion, meaning no limit."""
SHORT_SECONDS = 1.0
"""The placer is not told of shorter waits beside ready nodes."""


class Admission:
    """The request queues of this gateway."""

    def __init__(self, fleet: Fleet, decisions: Decisions) -> None:
        self._fleet = fleet
        self._decisions = decisions
        self._clients = ClientHistory()
        self._queues: dict[str, RequestQueue] = {}
        self._live_gateways = 1

    @property
    def waiting(self) -> int:
        """The number of requests that wait for their turn."""
        return sum(queue.waiting for queue in self._queues.values())

    @property
    def handed_over(self) -> int:
        """The number of requests that have had their turn and that no neuron has accepted yet."""
        return sum(queue.handed_over for queue in self._queues.values())

    def admit(self, request: GenerateRequest, tenant: str, priority: Priority) -> Ticket:
        """Queues a request. Raises ``FleetError`` when its model cannot be served, or its queue is
        full."""
        model = request.model
        decision = self._decisions.decide_for_request(model)
        if isinstance(decision, router.Refuse) and not decision.may_change:
            raise FleetError.of(decision.error)
        if model not in self._queues:
            ended = functools.partial(self._clients.ended, model=model)
            self._queues[model] = RequestQueue(model, ended=ended)
        self._open(model)
        ticket = self._queues[model].enqueue(tenant, priority, estimated_tokens(request))
        self._clients.began(tenant, model)
        return ticket

    def wanted(self) -> dict[str, WaitingRequests]:
        """Lists what waits for models: queued requests, and streams that have lost their node."""
        found = self._decisions.unplaced()
        for model, queue in self._queues.items():
            if not queue.waiting:
                continue
            waited = queue.waited_seconds
            if waited > SHORT_SECONDS or not self._fleet.ready(model):
                released = self._clients.released_by(queue.waiting_tenants, model)
                found[model] = WaitingRequests(queue.waiting, waited, released)
        return found

    def update_room(self, live_gateways: int) -> None:
        """Opens the queues as far as the fleet has room now, shared with the other gateways."""
        self._live_gateways = live_gateways
        for model, queue in list(self._queues.items()):
            if queue.waiting:
                self._open(model)
            elif queue.is_idle and not self._decisions.is_known(model):
                del self._queues[model]  # a name that somebody has made up
                self._clients.forget(model)

    def _open(self, model: str) -> None:
        if self._fleet.ready(model):
            self._queues[model].open(
                self._fleet.free_slots(model), self._live_gateways, self._fleet.slots(model)
            )
        else:
            self._queues[model].shut()


def estimated_tokens(request: GenerateRequest) -> int:
    """Estimates what a request costs its tenant: four characters are about one token."""
    answer = request.sampling.max_tokens or USUAL_ANSWER
    return characters(request) // 4 + min(answer, LONGEST_ANSWER)


def characters(request: GenerateRequest) -> int:
    """Counts the characters of all messages, or of the prompt."""
    prompt = len(request.prompt) if request.prompt is not None else 0
    return prompt + sum(len(m.content) + len(m.reasoning) for m in request.messages)
