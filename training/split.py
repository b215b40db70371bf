"""What is kept out of training, so that the demo model's scores are about unseen questions.

Whether an item is held out depends on its own text alone (a stable hash), never on a seed or on
the order of generation: training and evaluation need no shared list to agree.
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

ONE_IN = 10
"""One item in this many is held out."""


class Kind(StrEnum):
    """What an item is; each kind is split by its own key."""

    SUM = "sum"
    """Key: the two numbers, smaller first, so that 3 + 5 cannot give 5 + 3 away."""
    WORDS = "words"
    """Key: the list of words to repeat."""
    CITY = "city"
    """Key: the city's name."""
    COUNT = "count"
    """Key: the last number. Exempt: only sixty exist, too few to infer where to stop from."""
    UNKNOWN = "unknown"
    """Key: the text of something the model cannot do."""
    SYSTEM = "system"
    """Key: the system prompt."""
    CONVERSATION = "conversation"
    """Key: the kinds of its turns, in order."""
    FIXED = "fixed"
    """Facts, greetings and the model's name. Exempt: they can only be learned by heart."""


EXEMPT = frozenset({Kind.COUNT, Kind.FIXED})


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is either trained on or held out, wherever it occurs."""

    kind: Kind
    key: str


def is_held_out(kind: Kind, key: str) -> bool:
    """Whether this item may only be asked in evaluation, never shown in training."""
    if kind in EXEMPT:
        return False
    plain = " ".join(key.lower().rstrip(".?! \n").split())
    digest = hashlib.sha256(f"{kind.value}:{plain}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % ONE_IN == 0
