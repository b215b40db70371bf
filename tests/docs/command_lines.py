"""Command lines in texts for people, held against the programs that they call.

A line is a command line when it begins with the name of a program: in a block, unless its language
is one of data; after the ``$`` of a recorded session; in backticks; and outside of all these too.
So a sentence must not begin its line with ``cortex`` or ``neuron``. A verb alone in backticks is
its name; everything else must be what the program would take.
"""

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import click

import cortex.cli.main
import neuron.cli
from tests.docs.pages import ROOT, code_spans, lines

PROGRAMS: dict[str, click.Group] = {"cortex": cortex.cli.main.cli, "neuron": neuron.cli.cli}
SCRIPTS = {"check": "bin/check", "setup": "bin/setup", "train-demo": "training/train.py"}
"""Where the options of a script stand."""
PYTEST = {"-k", "-m", "-n0", "-q", "-s", "-x"}
"""The options of pytest that pages use with ``bin/test``."""
_DATA = ("json", "mermaid", "python", "text", "toml")
"""Languages of blocks without commands."""
_COMMAND = re.compile(
    r"(?:(?:\.venv/)?bin/)?(?:cortex|neuron) +[^\s─►◄]|bin/[\w-]+(?:\s|$)|[^\s`]*python3? -m "
)
_PARTS = re.compile(r" (?:&&|\|\|?|;) ")


class CommandLine(NamedTuple):
    """One of them, as a page has it."""

    text: str
    is_mention: bool = False
    """In backticks: a verb alone needs no arguments."""

    @property
    def fault(self) -> str:
        """Why it would be refused; empty for one that is fine."""
        return _fault(self.text, self.is_mention)


def in_page(text: str) -> Iterator[CommandLine]:
    """The command lines of a page."""
    whole = ""
    for line, language in lines(text):
        line = (whole + line).strip()
        whole = ""
        if language == "console":
            if not line.startswith("$ "):
                continue
        elif language in _DATA:
            continue
        if line.endswith("\\") and language is not None:
            whole = line.removesuffix("\\")
            continue
        yield from map(CommandLine, _commands(re.sub(r"^(?:[-*>$] )+", "", line)))
    for span in code_spans(text):
        yield from (CommandLine(found, is_mention=True) for found in _commands(span))


def in_help(group: click.Group) -> Iterator[CommandLine]:
    """The command lines in the help of a program's verbs."""
    for command in group.commands.values():
        for line in (command.help or "").splitlines():
            yield from map(CommandLine, _commands(line.strip()))


def _commands(line: str) -> Iterator[str]:
    """Without comments, settings of the environment and the marks of what may be left out."""
    line = re.sub(r"(^|\s)#.*", "", line)
    for part in _PARTS.split(line):
        part = re.sub(r"^(?:\w+=\S+ +)+", "", part.strip())
        if _COMMAND.match(part):
            yield re.sub(r"\[(-[^\]]*)\]", r"\1", part).replace("…", "").strip()


def _fault(line: str, is_mention: bool) -> str:
    try:
        program, *words = shlex.split(line)
    except ValueError as error:
        return f"no command line: {error}"
    name = program.rpartition("/")[2]
    if name in PROGRAMS:
        return _fault_of_verb(PROGRAMS[name], words, is_mention)
    if name.startswith("python"):
        return _fault_of_module(words[1:])
    if not (ROOT / "bin" / name).exists():
        return f"there is no {program}"
    if name == "test":
        return _fault_of_tests(words)
    options = (ROOT / SCRIPTS[name]).read_text(encoding="utf-8")
    return _unknown(words, options)


def _fault_of_verb(group: click.Group, words: list[str], is_mention: bool) -> str:
    if not words:
        return ""
    if words[0].startswith("-"):
        return _parsed(group, words)
    command = group.commands.get(words[0])
    if command is None:
        return f"no such verb: {words[0]}"
    return "" if is_mention and not words[1:] else _parsed(command, words[1:])


def _parsed(command: click.Command, words: list[str]) -> str:
    """Parses as the program does, and runs nothing."""
    try:
        command.make_context(command.name, list(words))
    except click.exceptions.Exit:  # --help
        return ""
    except click.UsageError as error:
        return error.format_message()
    return ""


def _fault_of_module(words: list[str]) -> str:
    """For modules of this checkout; others are somebody else's."""
    path = ROOT / words[0].replace(".", "/")
    if words[0].split(".")[0] not in ("bench", "tests", "training"):
        return ""
    sources = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    if not all(source.exists() for source in sources) or not sources:
        return f"no such module: {words[0]}"
    return _unknown(words[1:], "".join(source.read_text(encoding="utf-8") for source in sources))


def _fault_of_tests(words: list[str]) -> str:
    for word in words:
        if word.startswith("tests/") and not (ROOT / word.partition("::")[0]).exists():
            return f"no such test: {word}"
        if word.startswith("-") and word not in PYTEST:
            return f"pytest's {word} is not listed in {__name__}"
    return ""


def _unknown(words: list[str], source: str) -> str:
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and f'{option}"' not in source and f"{option} " not in source:
            return f"no such option: {option}"
    return ""
