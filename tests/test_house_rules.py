"""Rules of the house that no linter knows; see CONTRIBUTING.md."""

import ast
import itertools
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import cortex
import neuron

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
ALL = [
    *SOURCES,
    *sorted((ROOT / "tests").rglob("*.py")),
    *sorted((ROOT / "training").rglob("*.py")),
    *sorted((ROOT / "bench").rglob("*.py")),
]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAY_READ_ENVIRONMENT = {"config.py", "__main__.py"}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES, f"{_name(path)} is too long: split it by noun"
    for function in _functions(ast.parse(text)):
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= MAX_FUNCTION_LINES, f"{_name(path)}:{function.name} has {lines} lines"


@pytest.mark.parametrize("path", ALL, ids=_name)
def test_every_module_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{_name(path)} has no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_no_global_state(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Global), f"{_name(path)}:{node.lineno} uses global"
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [t.id for t in targets if isinstance(t, ast.Name)]
        if isinstance(value, ast.List | ast.Set):
            assert names == ["__all__"], f"{_name(path)}:{node.lineno} is mutable module state"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_the_environment_is_read_in_config_only(path: Path) -> None:
    if path.name in MAY_READ_ENVIRONMENT:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("environ", "getenv"), f"{_name(path)}:{node.lineno}"


def test_imports_have_no_cycles() -> None:
    graph = {_module(p): set(_imports(p)) for p in SOURCES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            cycle = " → ".join(itertools.dropwhile(lambda m: m != module, (*trail, module)))
            raise AssertionError(f"import cycle: {cycle}")
        if module in done or module not in graph:
            return
        for needed in sorted(graph[module]):
            visit(needed, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[str]:
    """Modules that are imported when this one is; imports inside functions come later."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == cortex.__version__ == neuron.__version__
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_pin_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        requirement.split(";")[0].split("[")[0].split(">")[0].split("=")[0].split("<")[0].strip()
        for requirement in itertools.chain(
            project["dependencies"], *project["optional-dependencies"].values()
        )
    } - {"cortex-fleet"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert wanted - pinned == set()
    assert not [line for line in lines if "+" in line], "no local version suffixes"
