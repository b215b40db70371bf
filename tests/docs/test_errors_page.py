"""``docs/errors.md`` lists every exception of the code and every code with its statuses."""

import ast
import builtins
import re
from pathlib import Path

from cortex.api.error_responses import Style, status_of
from protocol.errors import ErrorCode, WireError
from tests.docs.pages import ROOT

PAGE = ROOT / "docs/errors.md"
_ROW = re.compile(r"^\| `(\w+)` \| (.+) \|$", re.MULTILINE)


def _base(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _exceptions(root: Path) -> dict[str, str]:
    """The module of every class that is an exception, by the class's name."""
    defined = [
        (node, ".".join(path.relative_to(root).with_suffix("").parts))
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    known = {
        name
        for name, value in vars(builtins).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    found: dict[str, str] = {}
    more = True
    while more:
        more = False
        for node, module in defined:
            if node.name not in found and any(_base(base) in known for base in node.bases):
                found[node.name] = module
                known.add(node.name)
                more = True
    return found


def _rows() -> dict[str, list[str]]:
    found = _ROW.findall(PAGE.read_text(encoding="utf-8"))
    rows = {name: [cell.strip() for cell in rest.split("|")] for name, rest in found}
    assert len(rows) == len(found), "a name is on the page twice"
    return rows


def test_every_exception_is_on_the_page_with_its_module() -> None:
    codes = {code.value for code in ErrorCode}
    listed = {name: row[0].strip("`") for name, row in _rows().items() if name not in codes}
    assert listed == _exceptions(ROOT / "src")


def test_an_exception_in_any_disguise_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import b\nclass Second(b.First): ...\nclass No(dict): ...\n")
    (tmp_path / "b.py").write_text("def f():\n    class First(OSError): ...\n")
    assert _exceptions(tmp_path) == {"First": "b", "Second": "a"}


def test_the_statuses_are_those_of_the_code() -> None:
    rows = _rows()
    for code in ErrorCode:
        error = WireError(code, "")
        assert code.value in rows, f"{code.value} is not on the page"
        shown = [int(cell) for cell in rows[code.value][-2:]]
        assert shown == [status_of(error, Style.OPENAI), status_of(error, Style.ANTHROPIC)], code
