"""The pages that are written for people, and what their tests read in them."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "bench").rglob("*.md")),
    ROOT / "src/neuron/demo_model/README.md",
]
EXAMPLES = sorted(p for p in (ROOT / "deploy").iterdir() if p.is_file())
"""Their comments are written for people too."""
_FENCE = re.compile(r"^\s*(?:```+|~~~+)\s*([\w-]*)[^`]*$")
_CODE = re.compile(r"`([^`\n]+)`")


def name_of(page: Path) -> str:
    """The page as people name it."""
    return str(page.relative_to(ROOT))


def code_spans(text: str) -> Iterator[str]:
    """Everything in single backticks outside of fenced blocks."""
    for line, language in lines(text):
        if language is None:
            yield from _CODE.findall(line)


def lines(text: str) -> Iterator[tuple[str, str | None]]:
    """Every line with the language of the fenced block that it is in: empty where the fence names
    none, None outside of blocks."""
    language: str | None = None
    for line in text.splitlines():
        fence = _FENCE.match(line)
        if fence:
            language = fence[1] if language is None else None
        else:
            yield line, language
