"""Every file, module and name of the code that a page mentions is there."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, code_spans, name_of

TOPS = ("cortex", "neuron", "protocol", "tests", "bench", "training")
HISTORY = {"CHANGELOG.md"}
"""Pages that tell of what was."""
_PATH = re.compile(r"(?:[\w.-]+/)*[\w-]+\.py|(?:src/)?(?:%s)/(?:[\w-]+/)*" % "|".join(TOPS))  # noqa: UP031
_DOTTED = re.compile(r"(?:%s)(?:\.\w+)+" % "|".join(TOPS))  # noqa: UP031
SUFFIXES = ("toml", "md")


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in HISTORY], ids=name_of)
def test_what_a_page_names_exists(page: Path) -> None:
    missing = list(_missing(page.read_text(encoding="utf-8")))
    assert not missing, f"{name_of(page)} names what is not there: {', '.join(missing)}"


@pytest.mark.parametrize(
    "mistake",
    [
        "`cortex/router.py`",
        "`src/cortex/router.py`",
        "`neuron/engine/crew/`",
        "`frobnicate.py`",
        "`cortex.router`",
        "`neuron.engine.crew`",
        "`cortex.dispatch.router.frobnicate`",
        "`protocol.frames.Frobnicate`",
    ],
)
def test_a_mistaken_name_is_found(mistake: str) -> None:
    assert list(_missing(f"Routing is in {mistake}, and that is it.\n"))


def _missing(text: str) -> Iterator[str]:
    for span in code_spans(text):
        span = span.partition("::")[0]
        if _PATH.fullmatch(span):
            if not _is_path(span):
                yield span
        elif _DOTTED.fullmatch(span) and not _is_module(tuple(span.split("."))):
            yield span


def _is_path(text: str) -> bool:
    if "/" not in text:
        return text in _file_names()
    return any((base / text).exists() for base in (ROOT, ROOT / "src", ROOT / "tests"))


@cache
def _file_names() -> frozenset[str]:
    tops = ("src", "tests", "bench", "training")
    return frozenset(path.name for top in tops for path in (ROOT / top).rglob("*.py"))


def _is_module(names: tuple[str, ...]) -> bool:
    """Whether it is a package, a module, or what a module or one of its classes defines; files
    of settings that are named after a program pass too."""
    if names[-1] in SUFFIXES:
        return True
    for base in (ROOT / "src", ROOT):
        for length in range(len(names), 0, -1):
            path = base.joinpath(*names[:length])
            if path.is_dir() and length == len(names):
                return True
            source = path.with_suffix(".py")
            if source.exists():
                return _defines(ast.parse(source.read_text(encoding="utf-8")), names[length:])
    return False


def _defines(node: ast.Module | ast.ClassDef, names: tuple[str, ...]) -> bool:
    if not names:
        return True
    for child in node.body:
        if isinstance(child, ast.ClassDef) and child.name == names[0]:
            return _defines(child, names[1:])
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and child.name == names[0]:
            return len(names) == 1
        targets: list[ast.expr] = []
        if isinstance(child, ast.Assign):
            targets = child.targets
        elif isinstance(child, ast.AnnAssign):
            targets = [child.target]
        if any(isinstance(t, ast.Name) and t.id == names[0] for t in targets):
            return len(names) == 1
    return False


def test_the_map_has_every_room() -> None:
    rooms = {
        f"{path.parent.relative_to(ROOT / 'src')}/"
        for top in ("cortex", "neuron", "protocol")
        for path in (ROOT / "src" / top).rglob("*.py")
    }
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w/]+/)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(rooms)


def test_every_decision_has_its_reason_its_price_and_its_place() -> None:
    folder = ROOT / "docs/decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    for page in sorted(folder.glob("*.md")):
        if page.name == "README.md":
            continue
        assert f"]({page.name})" in index, f"{page.name} is not in the index"
        _, *decisions = page.read_text(encoding="utf-8").split("\n## ")
        assert decisions
        for decision in decisions:
            for part in ("**Why.** ", "**Costs.** ", "**Where.** `"):
                assert part in decision, f"{page.name}: {decision.splitlines()[0]}: no {part}"
