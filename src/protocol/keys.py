"""KV buckets and keys: who writes what, and for how long it is true.

Every key has exactly one writer, every value is JSON (``nats kv get`` and ``nats kv watch`` are
readable) and carries the writer's process instance, so that the record of an earlier life can be
told from the present.

====================  =======================  ===================================================
bucket                key                      value, and who writes it
====================  =======================  ===================================================
``cortex_nodes``      ``<node>.info``          :class:`protocol.fleet.NodeInfo`; that neuron
``cortex_nodes``      ``<node>.live`` (TTL)    :class:`protocol.fleet.NodeLive`; that neuron
``cortex_nodes``      ``<node>.model.<model>`` :class:`protocol.fleet.ModelRecord`; that neuron
``cortex_catalogue``  ``<model>``              :class:`protocol.catalogue.CatalogueRecord`; the
                                               gateway that was told of it
====================  =======================  ===================================================
"""

from typing import NamedTuple

from protocol.names import InvalidName, check_host_id, token, untoken

NODES = "cortex_nodes"
CATALOGUE = "cortex_catalogue"

LIVE_EVERY_SECONDS = 5
LIVE_TTL_SECONDS = 15
"""Three missed writes; whether a node is alive this second is known from its heartbeats."""


class NodeKey(NamedTuple):
    """A parsed key of ``cortex_nodes``."""

    node: str
    kind: str
    """``info``, ``live`` or ``model``."""
    model: str = ""


def node_info(node: str) -> str:
    """Hardware and versions of a node."""
    return f"{node}.info"


def node_live(node: str) -> str:
    """What changes by itself on a node: free memory, temperatures."""
    return f"{node}.live"


def node_model(node: str, model: str) -> str:
    """The state of one model on one node."""
    return f"{node}.model.{token(model)}"


def catalogue(model: str) -> str:
    """A model's profile."""
    return token(model)


def parse_node_key(key: str) -> NodeKey:
    """Reads a key of ``cortex_nodes``; raises :class:`InvalidName` for one that is none."""
    match key.split("."):
        case [node, ("info" | "live") as kind]:
            return NodeKey(check_host_id(node), kind)
        case [node, "model", model]:
            return NodeKey(check_host_id(node), "model", untoken(model))
    raise InvalidName(f"{key!r} is not a key of {NODES}")
