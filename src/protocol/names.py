"""Names that travel on the bus: model ids, node and gateway ids, job and instance ids.

Model ids contain ``/``, ``.`` and ``:``, which NATS subjects, KV keys and consumer names may not.
:func:`token` writes any text as one safe token and :func:`untoken` reads it back; the pair is a
bijection, so one model has exactly one subject.
"""

import re
import secrets
from functools import lru_cache

MAX_SIBLINGS = 128
"""Upper bound of choices in one answer."""
MAX_MODEL_ID_BYTES = 200
"""Longer model ids are refused: consumer names are limited to 255 bytes, and ordinary ids grow by
their escapes."""

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST_ID = re.compile(r"[a-z0-9-]{1,48}")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_ESCAPE = re.compile(rb"=([0-9A-F]{2})")


class InvalidName(ValueError):
    """Raised when a name or token is outside its grammar; the message says which and why."""


@lru_cache(maxsize=4096)
def token(text: str) -> str:
    """Writes *text* as one token of ``[A-Za-z0-9_=-]``: other UTF-8 bytes become ``=XX``.

    Raises :class:`InvalidName` for an empty text, which has no token.
    """
    if not text:
        raise InvalidName("an empty name has no token")
    return "".join(chr(b) if b in _PLAIN else f"={b:02X}" for b in text.encode())


@lru_cache(maxsize=4096)
def untoken(text: str) -> str:
    """Reads a token back, the inverse of :func:`token`.

    Raises :class:`InvalidName` for anything that :func:`token` would not have written.
    """
    try:
        decoded = _ESCAPE.sub(lambda m: bytes([int(m[1], 16)]), text.encode("ascii")).decode()
        canonical = token(decoded) == text
    except (UnicodeError, InvalidName):
        canonical = False
    if not canonical:
        raise InvalidName(f"{text!r} is not a canonical token")
    return decoded


def check_model_id(model: str) -> str:
    """Returns *model* if it can be a model id; otherwise raises :class:`InvalidName`."""
    size = len(model.encode())
    if not 0 < size <= MAX_MODEL_ID_BYTES:
        raise InvalidName(
            f"a model id must have 1 to {MAX_MODEL_ID_BYTES} bytes; this one has {size}"
        )
    if any(ord(character) < 32 for character in model):
        raise InvalidName(f"a model id must not contain control characters: {model!r}")
    return model


def check_host_id(name: str) -> str:
    """Returns *name* if it can be a node or gateway id; otherwise raises :class:`InvalidName`."""
    if not _HOST_ID.fullmatch(name):
        raise InvalidName(
            f"{name[:80]!r} cannot name a node or gateway: use 1 to 48 of the characters a-z, 0-9 "
            "and '-'"
        )
    return name


def check_job_id(job_id: str) -> str:
    """Returns *job_id* if it can be one; otherwise raises :class:`InvalidName`."""
    if not _JOB_ID.fullmatch(job_id):
        raise InvalidName(f"{job_id[:80]!r} cannot be the id of a job")
    return job_id


def host_id_from(text: str) -> str:
    """Returns the valid node or gateway id that is nearest to a free text such as a host name."""
    cleaned = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")[:48].strip("-")
    return cleaned or "node"


def new_job_id() -> str:
    """Makes a fresh 128-bit job id: 32 hex digits, so that it is one token everywhere."""
    return secrets.token_hex(16)


def sibling_job_id(job_id: str, number: int) -> str:
    """Returns the id of the job that computes another choice of the same answer; 0 is the job
    itself.

    The first id determines all others, so a client that comes back names only one.
    """
    if not 0 <= number < MAX_SIBLINGS:
        raise ValueError(f"an answer has at most {MAX_SIBLINGS} choices; this is number {number}")
    return f"{job_id[:-2]}{int(job_id[-2:], 16) ^ number:02x}"


def new_instance_id() -> str:
    """Names one life of a process; a restarted neuron or gateway gets a new name."""
    return secrets.token_hex(6)
