"""Operators' standing intent, pins and drained nodes: a view of ``cortex_placement``."""

import logging

from protocol import codec, keys
from protocol.names import InvalidName, untoken
from protocol.placement import Placement

log = logging.getLogger("placer")


class OperatorIntent:
    """Intent that stands until it is withdrawn, beside what the placer wrote there."""

    def __init__(self) -> None:
        self._pins: dict[str, frozenset[str]] = {}
        self._drained: set[str] = set()
        self._placements: dict[str, Placement] = {}
        self.version = 0
        """Changes whenever a record does."""

    def key_changed(self, key: str, value: bytes | None) -> None:
        """Takes in a key of ``cortex_placement`` that was written, or removed (None)."""
        self.version += 1
        kind, _, rest = key.partition(".")
        try:
            # what cannot be read leaves what was there
            if kind == "pin":
                nodes = frozenset(codec.read_pin(value).nodes) if value else frozenset()
                self._pins.pop(untoken(rest), None)
                if nodes:
                    self._pins[untoken(rest)] = nodes
            elif kind == "drain":
                if value:
                    codec.read_drain(value)
                    self._drained.add(rest)
                else:
                    self._drained.discard(rest)
            elif kind == "node":
                placement = codec.read_placement(value) if value else None
                self._placements.pop(key, None)
                if placement is not None:
                    self._placements[key] = placement
        except (InvalidName, codec.UnreadableMessage) as error:
            log.warning("ignored the unreadable record %s in %s: %s", key, keys.PLACEMENT, error)

    @property
    def pins(self) -> dict[str, frozenset[str]]:
        """Returns the nodes of every pinned model."""
        return dict(self._pins)

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Returns what the placer has decided."""
        return tuple(self._placements.values())

    def pinned_on(self, model: str) -> frozenset[str]:
        """Returns the nodes on which operators have pinned *model*."""
        return self._pins.get(model, frozenset())

    def is_drained(self, node: str) -> bool:
        """Whether operators have drained *node*."""
        return node in self._drained
