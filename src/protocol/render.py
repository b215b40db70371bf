"""Renders a prompt as text and as tokens: ``cortex.node.<node>.render``.

Any node that has the model's files can do it; no model is loaded for it.
"""

import msgspec

from protocol.errors import WireError
from protocol.generate import GenerateRequest


class Render(msgspec.Struct, frozen=True, omit_defaults=True):
    """A conversation, a text or tokens, as the request's ``prompt`` or ``messages``."""

    request: GenerateRequest
    rendered_at: float = 0.0
    """Unix seconds that the template uses as the present time."""
    pieces: bool = False
    """Also asks for each token's text."""


class Rendered(msgspec.Struct, frozen=True, omit_defaults=True):
    """The reply to :class:`Render`."""

    tokens: tuple[int, ...] = ()
    text: str = ""
    pieces: tuple[str, ...] = ()
    """Each token's text, if requested; part of a character shows as U+FFFD."""
    context_limit: int = 0
    """The loaded model's context limit; 0 = it is not loaded."""
    error: WireError | None = None
    """Why there is no answer; None when there is one."""
