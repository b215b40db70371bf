"""Rules of the house that no linter knows; see CONTRIBUTING.md."""

import ast
import functools
import itertools
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

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
MAX_MODULES = 16
"""In one folder, beside its ``__init__``."""
MAX_CONSTRUCTOR_ARGUMENTS = 8
"""Besides self."""
KNOWN_LONG_CONSTRUCTORS = {
    "neuron.service.residents.resident.Resident": 14,
}
"""Those that take more today, with how many. What is mended must leave this list."""
MAY_READ_ENVIRONMENT = {"config.py", "__main__.py"}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _none(offences: Iterable[str]) -> None:
    """Fails with every offence at once."""
    found = list(offences)
    assert not found, "\n".join(["", *found])


def test_files_and_functions_are_short() -> None:
    def offences() -> Iterator[str]:
        for path in ALL:
            lines = path.read_text().count("\n")
            if lines > MAX_FILE_LINES:
                yield f"{_name(path)} has {lines} lines: split it by noun"
            for function in _functions(_tree(path)):
                lines = (function.end_lineno or 0) - function.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    yield f"{_name(path)}:{function.lineno} {function.name} has {lines} lines"

    _none(offences())


def test_every_module_says_what_it_is() -> None:
    _none(
        f"{_name(path)} has no docstring"
        for path in ALL
        if path.read_text().strip() and not ast.get_docstring(_tree(path))
    )


def test_no_global_state() -> None:
    def offences() -> Iterator[str]:
        for path in SOURCES:
            tree = _tree(path)
            for node in ast.walk(tree):
                if isinstance(node, ast.Global):
                    yield f"{_name(path)}:{node.lineno} uses global"
            for node in tree.body:
                if isinstance(node, ast.Assign | ast.AnnAssign) and _is_mutable_state(node):
                    yield f"{_name(path)}:{node.lineno} is mutable module state"

    _none(offences())


def _is_mutable_state(node: ast.Assign | ast.AnnAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return isinstance(node.value, ast.List | ast.Set) and names != ["__all__"]


def test_the_environment_is_read_in_config_only() -> None:
    _none(
        f"{_name(path)}:{node.lineno} reads the environment"
        for path in SOURCES
        if path.name not in MAY_READ_ENVIRONMENT
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    )


def test_no_folder_is_a_hall() -> None:
    modules = Counter(path.parent for path in SOURCES if path.name != "__init__.py")
    _none(
        f"{_name(folder)} has {count} modules, at most {MAX_MODULES} may be: make rooms"
        for folder, count in modules.items()
        if count > MAX_MODULES
    )


def test_constructors_take_few_arguments() -> None:
    offenders = {
        f"{_module_name(path)}.{owner.name}": count
        for path in SOURCES
        for owner in ast.walk(_tree(path))
        if isinstance(owner, ast.ClassDef)
        for function in owner.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
        if (count := _arguments(function)) > MAX_CONSTRUCTOR_ARGUMENTS
    }
    known = KNOWN_LONG_CONSTRUCTORS
    _none(
        f"{name} takes {offenders.get(name, 'few')} arguments, not {known.get(name, 'few')}: "
        "give it an object, or correct the exception"
        for name in sorted(offenders.keys() | known.keys())
        if offenders.get(name) != known.get(name)
    )


def _arguments(function: ast.FunctionDef) -> int:
    """How many there are besides self."""
    wanted = function.args
    named = [*wanted.posonlyargs, *wanted.args, *wanted.kwonlyargs]
    return len(named) + bool(wanted.vararg) + bool(wanted.kwarg) - 1


def test_imports_have_no_cycles() -> None:
    graph = {_module_name(p): set(_imports(p)) for p in SOURCES}
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


def _imports(path: Path) -> Iterator[str]:
    """Modules that are imported when this one is; imports inside functions come later."""
    for node in _tree(path).body:
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
