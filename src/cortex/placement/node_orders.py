"""Sends an order to one node and reads its reply; shared by the placer and the operators' verbs."""

from protocol import codec, subjects
from protocol.bus import Bus
from protocol.errors import ErrorCode, WireError
from protocol.orders import LoadOrder, PullOrder, RecycleOrder, UnloadOrder

ANSWER_SECONDS = 2.0
"""How long a node may take to accept or refuse an order."""

Order = LoadOrder | UnloadOrder | PullOrder | RecycleOrder


def verb_of(order: Order) -> str:
    """Returns the verb that an order has in its subject."""
    match order:
        case LoadOrder():
            return "load"
        case UnloadOrder():
            return "unload"
        case PullOrder():
            return "pull"
        case RecycleOrder():
            return "recycle"


class NodeOrders:
    """Sends orders to nodes."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def send(self, node: str, order: Order) -> WireError | None:
        """Sends *order* and waits for the reply; None when the node has accepted it."""
        subject = subjects.node_verb(node, verb_of(order))
        answer = await self._bus.request(subject, codec.encode(order), timeout=ANSWER_SECONDS)
        if answer is None:
            why = f"Node {node} did not answer within {ANSWER_SECONDS:.0f} s. Try again shortly."
            return WireError(ErrorCode.MODEL_UNAVAILABLE, why, retry_after_seconds=2)
        try:
            return codec.read_order_reply(answer).error
        except codec.UnreadableMessage as error:
            why = f"Node {node} sent a reply that this gateway's version cannot read: {error}"
            return WireError(ErrorCode.MODEL_UNAVAILABLE, why)
