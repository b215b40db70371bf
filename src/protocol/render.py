"""What a prompt looks like as text and as tokens: ``cortex.node.<node>.render``.

Any node that has the model's files can tell; nothing is loaded for it.
"""

import msgspec

from protocol.errors import WireError
from protocol.generate import GenerateRequest


class Render(msgspec.Struct, frozen=True, omit_defaults=True):
    """A conversation, a text or tokens, as the request's ``prompt`` or ``messages``."""

    request: GenerateRequest
    rendered_at: float = 0.0
    """Unix seconds that the template shall take for now."""
    pieces: bool = False
    """Each token's text is wanted as well."""


class Rendered(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer to :class:`Render`."""

    tokens: tuple[int, ...] = ()
    text: str = ""
    pieces: tuple[str, ...] = ()
    """Each token's text, if wanted; a part of a character shows as U+FFFD."""
    context_limit: int = 0
    """Of the model where it is loaded; 0 = it is not."""
    error: WireError | None = None
    """Why there is no answer."""
