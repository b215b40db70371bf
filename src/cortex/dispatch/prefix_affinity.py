"""Remembers which node has a prompt's prefix in its cache, because that node computes the rest
soonest. Pure.

A conversation comes back with one more turn each time. A hash chain over its turns names every
prefix; the node that served a request is remembered for all of them, and the next request is
offered to the node that has its longest known prefix.
"""

import hashlib
from collections import OrderedDict
from typing import NamedTuple

import msgspec

from protocol import codec
from protocol.generate import GenerateRequest

MIN_CHARACTERS = 1024
"""Shortest prefix worth finding; a shorter one is computed faster than it is found."""
LONG_TEXT = 16_384
"""Characters of a turn from which on its text is hashed as it is."""
MAX_PREFIXES = 65_536
"""Prefixes to remember; the oldest are forgotten first."""


class Prefix(NamedTuple):
    """The first turns of a conversation."""

    hash: bytes
    """Hash of the model, the tools, the template's options and these turns."""
    characters: int


def prefixes_of(request: GenerateRequest) -> list[Prefix]:
    """Lists a request's prefixes that are worth finding again, the shortest first."""
    head = codec.encode((request.model, request.tools, request.template_options))
    chain, characters = hashlib.blake2b(head, digest_size=16), len(head)
    found = []
    for message in request.messages:
        text = message.content
        if len(text) > LONG_TEXT:  # in JSON it would take five times as long
            message = msgspec.structs.replace(message, content="")
            chain.update(text.encode(errors="surrogatepass"))
            characters += len(text)
        turn = codec.encode(message)
        chain.update(turn)
        characters += len(turn)
        if characters >= MIN_CHARACTERS:
            found.append(Prefix(chain.digest(), characters))
    return found


class PrefixAffinity:
    """The node that last served each prefix."""

    def __init__(self, max_prefixes: int = MAX_PREFIXES) -> None:
        self._max = max_prefixes
        self._nodes: OrderedDict[bytes, str] = OrderedDict()

    def remember(self, known: list[Prefix], node: str) -> None:
        """Records that *node* has computed all of these; an empty *node* changes nothing."""
        for prefix in known if node else ():
            self._nodes[prefix.hash] = node
            self._nodes.move_to_end(prefix.hash)
        while len(self._nodes) > self._max:
            self._nodes.popitem(last=False)

    def node_of(self, known: list[Prefix]) -> str:
        """Returns the node with the longest of these prefixes; empty when none is known."""
        for prefix in reversed(known):
            if node := self._nodes.get(prefix.hash):
                return node
        return ""
