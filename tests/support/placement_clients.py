"""Who sends the requests of a simulated fleet: strangers, and clients that wait for each answer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from cortex.dispatch.client_history import ClientHistory
from tests.support.placement_parts import Request


@dataclass
class Client:
    """Somebody who asks one model after another, and reads each answer before going on."""

    name: str
    models: Iterator[str]
    seconds: float = 0.5
    """How long an answer takes."""
    pause_seconds: float = 0.0
    """Between an answer and the next request."""
    is_busy: bool = False
    next_at: float = 0.0


class Clients:
    """All of them, and what a gateway remembers of them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._clients: dict[str, Client] = {}
        self._history = ClientHistory(clock)

    def __len__(self) -> int:
        return len(self._clients)

    def begin(self, clients: Sequence[Client]) -> None:
        """Lets them ask until their models are exhausted."""
        self._clients = {client.name: client for client in clients}

    def due(self) -> Iterator[Request]:
        """The requests that they send now."""
        now = self._clock()
        for client in list(self._clients.values()):
            if client.is_busy or client.next_at > now:
                continue
            model = next(client.models, None)
            if model is None:
                del self._clients[client.name]
                continue
            client.is_busy = True
            yield Request(now, model, client.seconds, client.name)

    def sent(self, request: Request) -> None:
        """Somebody sent it."""
        self._history.began(_tenant(request), request.model)

    def over(self, request: Request) -> None:
        """It has been answered, or refused."""
        self._history.ended(_tenant(request), request.model)
        client = self._clients.get(request.client)
        if client is not None:
            client.is_busy, client.next_at = False, self._clock() + client.pause_seconds

    def released(self, waiting: Iterable[Request], model: str) -> dict[str, float]:
        """What those who wait for *model* have left behind."""
        return self._history.released_by({_tenant(request) for request in waiting}, model)


def _tenant(request: Request) -> str:
    return request.client or f"somebody at {request.at}"
