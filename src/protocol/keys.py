"""KV buckets and keys: who writes what.

Every key has exactly one writer, every value is JSON (``nats kv get`` and ``nats kv watch`` are
readable) and carries the writer's process instance, so that the record of an earlier life can be
told from the present. For how long those with a TTL are true is in :mod:`protocol.timing`.

====================  =======================  ===================================================
bucket                key                      value, and who writes it
====================  =======================  ===================================================
``cortex_nodes``      ``<node>.info``          :class:`protocol.fleet.NodeInfo`; that neuron
``cortex_nodes``      ``<node>.live`` (TTL)    :class:`protocol.fleet.NodeLive`; that neuron
``cortex_nodes``      ``<node>.model.<model>`` :class:`protocol.fleet.ModelRecord`; that neuron
``cortex_catalogue``  ``<model>``              :class:`protocol.catalogue.CatalogueRecord`; the
                                               gateway that was told of it
``cortex_wanted``     ``<model>.<gateway>``    :class:`protocol.placement.Wanted`; that gateway
                      (TTL)
``cortex_placement``  ``pin.<model>``          :class:`protocol.placement.Pin`; operators
``cortex_placement``  ``drain.<node>``         :class:`protocol.placement.Drain`; operators
``cortex_placement``  ``node.<node>.<model>``  :class:`protocol.placement.Placement`; the placer
``cortex_eviction``   ``<node>``               :class:`protocol.placement.EvictionOrder`; the placer
``cortex_leader``     ``placer`` (TTL)         :class:`protocol.leader.LeaseRecord`; the placer
====================  =======================  ===================================================
"""

from typing import NamedTuple

from protocol.names import InvalidName, check_host_id, token, untoken

NODES = "cortex_nodes"
CATALOGUE = "cortex_catalogue"
WANTED = "cortex_wanted"
PLACEMENT = "cortex_placement"
EVICTION = "cortex_eviction"
LEADER = "cortex_leader"
BUCKETS = (NODES, CATALOGUE, WANTED, PLACEMENT, EVICTION, LEADER)


class NodeKey(NamedTuple):
    """A parsed key of ``cortex_nodes``."""

    node: str
    kind: str
    """``info``, ``live`` or ``model``."""
    model: str = ""


def node_info(node: str) -> str:
    """Key of a node's hardware and versions."""
    return f"{node}.info"


def node_live(node: str) -> str:
    """Key of a node's changing measurements: free memory, temperatures."""
    return f"{node}.live"


def node_model(node: str, model: str) -> str:
    """Key of one model's state on one node."""
    return f"{node}.model.{token(model)}"


def all_of_node(node: str) -> str:
    """Every key of a node, as a pattern."""
    return f"{node}.>"


def catalogue(model: str) -> str:
    """Key of a model's profile."""
    return token(model)


def wanted(model: str, gateway: str) -> str:
    """Key of the demand for a model at one gateway."""
    return f"{token(model)}.{gateway}"


def pin(model: str) -> str:
    """Key of an operator's pin."""
    return f"pin.{token(model)}"


def drain(node: str) -> str:
    """Key of an operator's order to drain a node."""
    return f"drain.{node}"


def placement(node: str, model: str) -> str:
    """Key of a placer's decision."""
    return f"node.{node}.{token(model)}"


def eviction(node: str) -> str:
    """Key of the order in which a node's models would be evicted."""
    return node


PLACER = "placer"
"""The lease's key in ``cortex_leader``."""


def parse_node_key(key: str) -> NodeKey:
    """Parses a key of ``cortex_nodes``; raises :class:`InvalidName` for any other."""
    match key.split("."):
        case [node, ("info" | "live") as kind]:
            return NodeKey(check_host_id(node), kind)
        case [node, "model", model]:
            return NodeKey(check_host_id(node), "model", untoken(model))
    raise InvalidName(f"{key!r} is not a key of {NODES}")
