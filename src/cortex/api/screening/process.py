"""The program that counts the values of bodies: ``python -m cortex.api.screening.process``.

Reads one body after the other from its input, each behind its length, and writes one line of JSON
for each: the field at fault and what is wrong with it. Memory is limited, because a body of
millions of values takes fifty times its size.
"""

import json
import resource
import sys
from typing import BinaryIO

from cortex.api.screening.complexity import too_complex
from protocol.runtime.malloc import give_back_memory

LENGTH_BYTES = 4
MEMORY_BYTES = 2 << 30


def serve(bodies: BinaryIO, answers: BinaryIO) -> None:
    """Serves until the end of its input."""
    while len(head := bodies.read(LENGTH_BYTES)) == LENGTH_BYTES:
        body = bodies.read(int.from_bytes(head, "big"))
        try:
            field, why = too_complex(body)
        except MemoryError:
            field, why = "", "The body has more values than there is memory for."
        answers.write(json.dumps([field, why]).encode() + b"\n")
        answers.flush()
        del body
        give_back_memory()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    serve(sys.stdin.buffer, sys.stdout.buffer)
