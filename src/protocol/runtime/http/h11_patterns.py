"""Patterns of h11 whose time grew with the square of what a client sends.

h11 0.16 looks for blanks behind a header's colon and again behind its value. Where an illegal byte
follows 60,000 of them, it tries every way of sharing them out, which holds the event loop for
seconds; so with the extension of a chunk. Here the first part takes all of them (Python's
possessive quantifiers), and what is legal stays the same.
"""

import re

from h11 import _abnf, _readers

_BLANKS = ":[ \\t]*"
_EXTENSION = ";.*"


def install() -> None:
    """Has h11 use the quicker patterns. Raises RuntimeError for an h11 that has others."""
    header, chunk = _abnf.header_field, _abnf.chunk_header
    if header.count(_BLANKS) != 1 or chunk.count(_EXTENSION) != 1:
        raise RuntimeError("this version of h11 has other patterns; install 0.16.0")
    header = header.replace(_BLANKS, f"{_BLANKS}+")
    chunk = chunk.replace(_EXTENSION, ";[^\\r\\n]*+")
    _readers.header_field_re = re.compile(header.encode())
    _readers.chunk_header_re = re.compile(chunk.encode())
