"""Messages of the right types with absurd values, and others of no type at all, by a seed."""

import json
import random
from typing import Any

import msgspec
import msgspec.inspect as shapes

from protocol.job import Job

STRINGS = (
    "",
    " ",
    "a b",
    "a.b",
    "*",
    ">",
    "$JS.API.INFO",
    "x\r\nPUB evil 1\r\n1\r\n",
    "\x00",
    "=",
    "=ZZ",
    "é" * 60,
    "\ud83d\ude00",
    "y" * 5000,
    "9999-12-31T23:59:59.999999999Z",
    "../../etc/passwd",
)
INTS = (0, 1, -1, 2, 7, 255, -(2**31), 2**31, 2**63 - 1, -(2**63), 2**64, 10**30)
FLOATS = (0.0, -0.0, 1.5, -1.0, 1e-300, 1e300, -1e300, 1e18)


class Absurd:
    """Makes messages; *known* strings appear in them more often than others."""

    def __init__(self, seed: int, known: tuple[str, ...]) -> None:
        self._random = random.Random(seed)
        self._known = known

    def message(self, kind: Any) -> bytes:
        """A message that is decoded as *kind*, or that is not."""
        if self._random.random() < 0.2:
            return self.garbage()
        value = self._value(shapes.type_info(kind))
        if kind is Job:
            value["tokens_so_far"] = []  # scripted engines know which ones must come
        return json.dumps(value).encode()

    def garbage(self) -> bytes:
        """What is no message of ours."""
        deep = self._random.choice((50, 500, 5000, 100_000))
        return self._random.choice(
            (
                b"",
                b"null",
                b"[]",
                b"{}",
                b"\xff\xfe\x00",
                b'"' + b"x" * 100,
                b"1e999",
                b'{"kind":"unknown"}',
                b"[" * deep + b"]" * deep,
                b'{"a":' * deep + b"1" + b"}" * deep,
                b'{"instance":' + b"9" * 5000 + b"}",
            )
        )

    def string(self) -> str:
        """A known string, or an absurd one."""
        if self._random.random() < 0.6:
            return self._random.choice(self._known)
        return self._random.choice(STRINGS)

    def _value(self, kind: shapes.Type) -> Any:
        match kind:
            case shapes.StructType():
                found = {
                    field.encode_name: self._value(field.type)
                    for field in kind.fields
                    if field.required or self._random.random() < 0.7
                }
                if kind.tag_field:
                    found[kind.tag_field] = kind.tag
                return found
            case shapes.UnionType():
                return self._value(self._random.choice(kind.types))
            case shapes.VarTupleType() | shapes.ListType():
                few = range(self._random.choice((0, 1, 3)))
                return [self._value(kind.item_type) for _ in few]
            case shapes.TupleType():
                return [self._value(one) for one in kind.item_types]
            case shapes.DictType():
                few = range(self._random.choice((0, 1, 3)))
                return {self.string(): self._value(kind.value_type) for _ in few}
            case shapes.EnumType():
                return self._random.choice(list(kind.cls)).value
            case shapes.StrType():
                return self.string()
            case shapes.BoolType():
                return self._random.random() < 0.5
            case shapes.IntType():
                return self._random.choice(INTS)
            case shapes.FloatType():
                return self._random.choice(FLOATS)
            case shapes.NoneType():
                return None
            case shapes.RawType() | shapes.AnyType() | shapes.BytesType():
                return {"a": [1, "b", None]}
        raise TypeError(f"no absurd value for {kind}: add one")


def is_readable(data: bytes, kind: Any) -> bool:
    """Whether *data* is a message of *kind*."""
    try:
        msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True
