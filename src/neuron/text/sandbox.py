"""The Jinja environment of chat templates: what a template may do, and how much of it.

A template is a program that came with a model, so it runs in Jinja's sandbox and under a
:class:`Budget`. It sees the same names as with transformers, and gets the same results. Knows
nothing about messages or models.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

MAX_STEPS = 2_000_000
"""Loop iterations of one rendering, about half a second; real conversations need thousands."""
STEPS_PER_MACRO_CALL = 10
MAX_RENDERED_CHARS = 16 * 2**20
"""Limit on a rendering's text, far beyond every context length."""

BUDGET = "cortex_budget"
"""Name of the template variable that holds the rendering's :class:`Budget`."""
_COUNT_STEP = "count step"  # no template can write this name


class ConversationRefused(TemplateError):
    """Raised when a template calls ``raise_exception``: its author's message for the client."""


class TooExpensive(TemplateError):
    """Raised when a rendering exceeds its budget of steps or text."""


class Budget:
    """The steps that one rendering has left."""

    def __init__(self) -> None:
        self._steps = MAX_STEPS

    def spend(self, steps: int) -> None:
        """Counts *steps*; raises :class:`TooExpensive` when none are left."""
        self._steps -= steps
        if self._steps < 0:
            raise TooExpensive(f"it ran more than {MAX_STEPS:,} loop iterations")

    @staticmethod
    def bounded(pieces: Iterator[str]) -> str:
        """Joins *pieces*. Raises :class:`TooExpensive` beyond MAX_RENDERED_CHARS characters."""
        kept: list[str] = []
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > MAX_RENDERED_CHARS:
                raise TooExpensive(f"it wrote more than {MAX_RENDERED_CHARS:,} characters")
            kept.append(piece)
        return "".join(kept)


class GenerationBlock(Extension):
    """``{% generation %}…{% endgeneration %}``, a mark for training; only its body matters."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Returns the body as a scope of its own, as transformers does."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates so that they count their steps."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationBlock, "jinja2.ext.loopcontrols"],
        )
        self.filters["tojson"] = _tojson
        self.filters[_COUNT_STEP] = _count_step
        self.globals["raise_exception"] = _raise_exception
        self.globals["namespace"] = _GuardedNamespace
        del self.globals["lipsum"]  # random text, but all attempts must render the same prompt

    def parse_counted(self, source: str) -> nodes.Template:
        """The syntax tree of *source*, with a counting call in the body of each loop and macro.

        Jinja limits ``range``, but neither nested loops nor recursion that branches.
        """
        tree = self.parse(source)
        repeated: list[nodes.For | nodes.Macro | nodes.CallBlock] = [
            *tree.find_all(nodes.For),
            *tree.find_all(nodes.Macro),
            *tree.find_all(nodes.CallBlock),
        ]
        for node in repeated:
            # a filter, because calls go through the sandbox's checks and are ten times slower
            steps = 1 if isinstance(node, nodes.For) else STEPS_PER_MACRO_CALL
            count = nodes.Filter(nodes.Const(steps), _COUNT_STEP, [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(count).set_lineno(node.lineno))
        tree.set_environment(self)
        return tree


@pass_context
def _count_step(context: Context, steps: int) -> None:
    budget = context.parent.get(BUDGET)
    if not isinstance(budget, Budget):  # a template tried to remove its budget
        raise SecurityError(f"templates may not set the name {BUDGET}")
    budget.spend(steps)


class _GuardedNamespace(Namespace):
    """A namespace without names that have a meaning in Python or Jinja."""

    def __init__(*args: object, **kwargs: object) -> None:
        for name in kwargs:
            _refuse_private(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: object) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not have the private name {name!r}")


def _raise_exception(message: object) -> None:
    raise ConversationRefused(str(message))


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a model; Jinja's own filter escapes HTML characters and all non-ASCII text."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class Clock:
    """``strftime_now`` at a fixed time, so that all attempts of a job render the same prompt."""

    def __init__(self, unix_seconds: float) -> None:
        # UTC on every host, then without a time zone, as transformers' datetime.now() has none
        self._moment = datetime.fromtimestamp(unix_seconds, UTC).replace(tzinfo=None)

    def strftime_now(self, form: str) -> str:
        """Formats the time with a ``strftime`` format."""
        return self._moment.strftime(form)
