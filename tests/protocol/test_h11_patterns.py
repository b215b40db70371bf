"""h11's patterns as they are used here: the same lines are legal, and bad ones cost no time."""

import re
import time

import h11
import pytest
from h11 import _abnf, _readers
from hypothesis import given
from hypothesis import strategies as st

import protocol.runtime.http.http1  # noqa: F401  (installs them)

LENGTH = 60_000
HEADER = re.compile(_abnf.header_field.encode())
CHUNK = re.compile(_abnf.chunk_header.encode())


@given(st.text(alphabet=" \tab:;,\"'\x00\r\n\x0b\xe9", max_size=12))
def test_the_same_headers_are_legal(text: str) -> None:
    for line in (text.encode("latin-1"), b"a:" + text.encode("latin-1")):
        theirs, ours = HEADER.fullmatch(line), _readers.header_field_re.fullmatch(line)
        assert (theirs and theirs.groupdict()) == (ours and ours.groupdict())


@given(st.text(alphabet=' \tf0;=x"\n', max_size=12), st.sampled_from(["", "1", "1;", "1 "]))
def test_the_same_chunks_are_legal(text: str, start: str) -> None:
    """But for a carriage return in an extension."""
    line = f"{start}{text}\r\n".encode()
    theirs, ours = CHUNK.fullmatch(line), _readers.chunk_header_re.fullmatch(line)
    assert (theirs and theirs["chunk_size"]) == (ours and ours["chunk_size"])


def requests() -> dict[str, bytes]:
    """Beginnings that are long and illegal, at each place where something may be repeated."""
    start = b"GET / HTTP/1.1\r\nHost: x\r\n"
    chunked = start + b"Transfer-Encoding: chunked\r\n\r\n"
    places = {
        "method": b"%s / HTTP/1.1\r\n\r\n",
        "target": b"GET /%s HTTP/1.1\r\n\r\n",
        "version": b"GET / HTTP/%s\r\n\r\n",
        "name": start + b"%s: x\r\n\r\n",
        "before a value": start + b"A:%s\x00\r\n\r\n",
        "behind a value": start + b"A: x%s\x00\r\n\r\n",
        "value": start + b"A: x%sx\x00\r\n\r\n",
        "fold": start + b"A: x\r\n %s\x00\r\n\r\n",
        "length": start + b"Content-Length: %s\r\n\r\n",
        "coding": start + b"Transfer-Encoding: %s\r\n\r\n",
        "chunk": chunked + b"%s\r\n",
        "extension": chunked + b"1;%s\nx\r\n",
        "behind a chunk's length": chunked + b"1%s\nx\r\n",
        "trailer": chunked + b"0\r\nA:%s\x00\r\n\r\n",
    }
    fillings = (b" ", b"\t", b"a", b"a ", b"1,", b";", b"\r", b"\n", b"\r\n ", b":")
    return {
        f"{name}: {filling!r}": place % (filling * (LENGTH // len(filling)))
        for name, place in places.items()
        for filling in fillings
    }


@pytest.mark.parametrize("data", requests().values(), ids=requests())
def test_no_beginning_takes_long(data: bytes) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    began = time.process_time()
    try:
        connection.receive_data(data)
        while connection.next_event() not in (h11.NEED_DATA, h11.PAUSED):
            pass
    except h11.RemoteProtocolError:
        pass
    assert time.process_time() - began < 0.05
