"""The types of a tool's arguments: right for good schemas, and soon for hostile ones."""

import json
import time
from typing import Any

import pytest

from neuron.text.tool_calls.xml_calls import MAX_SCHEMA_BYTES, Schema

CPU_SECONDS = 0.03


def types(of: Any, **more: Any) -> set[str]:
    raw = json.dumps({"type": "object", "properties": {"a": of}, **more}).encode()
    return set(Schema(raw).types("a"))


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["integer", "null"]}, {"integer", "null"}),
        ({"enum": [1, "b", True, None, {}]}, {"number", "string", "boolean", "null", "object"}),
        ({"type": "string", "enum": [1]}, {"string"}),
        ({"$ref": "#/$defs/n"}, {"number"}),
        ({"anyOf": [{"type": "string"}, {"oneOf": [{"$ref": "#/$defs/n"}]}]}, {"string", "number"}),
        ({"allOf": [{"$ref": "#/$defs/loop"}, {"type": "null"}]}, {"array", "null"}),
        ({"$ref": "#/$defs/none"}, set()),
        ({"$ref": "elsewhere#/a"}, set()),
        ({"$ref": 5, "type": 5, "anyOf": 5, "enum": 5}, set()),
        ("no schema", set()),
    ],
)
def test_types(of: Any, expected: set[str]) -> None:
    loop = {"type": "array", "anyOf": [{"$ref": "#/$defs/loop"}]}
    assert types(of, **{"$defs": {"n": {"type": "number"}, "loop": loop}}) == expected


def test_what_is_no_schema_has_no_types() -> None:
    for raw in (b"", b"[]", b"{", b'{"properties":[]}', b'{"a":' * 5000, b"\xff", b"{}"):
        assert not Schema(raw).types("a")


def referring(count: int, where: str = "#/properties/a") -> list[dict[str, str]]:
    return [{"$ref": where}] * count


@pytest.mark.parametrize("count", [10, 50, 200, 5_000, 40_000])
@pytest.mark.parametrize("kind", ["itself", "others", "tree", "enum", "types", "steps", "deep"])
def test_hostile_schemas_take_no_time(kind: str, count: int) -> None:
    some = min(count, 40)
    defs: dict[str, Any] = {}
    match kind:
        case "itself":
            of: Any = {key: referring(count) for key in ("anyOf", "oneOf", "allOf")}
        case "others":
            defs = {f"d{n}": {"anyOf": referring(some, f"#/$defs/d{n + 1}")} for n in range(some)}
            of = {"anyOf": referring(count, "#/$defs/d0")}
        case "tree":
            of = {"type": "string"}
            for _ in range(min(count, 14)):
                of = {"anyOf": [of, of]} if len(json.dumps(of)) < 100_000 else of
        case "enum":
            of = {"enum": list(range(count))}
        case "types":
            of = {"type": ["string", *map(str, range(count))]}
        case "steps":
            of = {"anyOf": referring(200, "#" + "/properties/a" * (count // 10))}
        case _:
            of = {"anyOf": []}
            for _ in range(min(count, 400)):
                of = {"anyOf": [of]}
    raw = json.dumps({"properties": {"a": of}, "$defs": defs}).encode()
    began = time.process_time()
    Schema(raw).types("a")
    assert time.process_time() - began < CPU_SECONDS


def test_schemas_that_are_too_long_are_not_read() -> None:
    raw = json.dumps({"properties": {"a": {"type": "number"}}, "x": "y" * MAX_SCHEMA_BYTES})
    assert not Schema(raw.encode()).types("a")
