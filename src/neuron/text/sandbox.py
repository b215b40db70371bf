"""The Jinja environment of chat templates: what a template may do, and how much of it.

A template is a program that came with a model, so it runs in Jinja's sandbox and under a
:class:`Budget`. It sees the same names as with transformers, and gets the same results. Knows
nothing about messages or models.

The bounds here make the usual bombs fail at once and with a readable reason. They cannot be
complete: what one call of C code may take is bounded by the process that renders
(``neuron.text_process``).
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension
from jinja2.filters import do_round
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

MAX_STEPS = 2_000_000
"""Loop iterations of one rendering, about half a second; real conversations need thousands."""
STEPS_PER_MACRO_CALL = 10
MAX_RENDERED_CHARS = 16 * 2**20
"""Limit on a rendering's text, far beyond every context length."""

MAX_INTEGER_BITS = 1 << 16
"""Limit on what a template computes: arithmetic on longer integers takes seconds per operation."""
MAX_DIGITS = 300
"""Most digits that a number can be rounded to; a float has no more."""

BUDGET = "cortex_budget"
"""Name of the template variable that holds the rendering's :class:`Budget`."""
_COUNT_STEP = "count step"  # no template can write this name


class ConversationRefused(TemplateError):
    """Raised when a template calls ``raise_exception``: its author's message for the client."""


class TooExpensive(TemplateError):
    """Raised when a rendering exceeds its budget of steps, text or time."""


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


class _Unfolded(CodeGenerator):
    """Compiles without computing anything: a constant expression may be a bomb, also one in a
    branch that is never taken."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates so that they count their steps."""

    code_generator_class = _Unfolded
    intercepted_binops = frozenset(("*", "**", "+"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationBlock, "jinja2.ext.loopcontrols"],
            optimized=False,
        )
        self.filters["round"] = _round
        self.filters["tojson"] = _tojson
        self.filters[_COUNT_STEP] = _count_step
        self.globals["raise_exception"] = _raise_exception
        self.globals["namespace"] = _GuardedNamespace
        # Chance, but all attempts must render the same prompt.
        del self.globals["lipsum"]
        self.filters["random"] = _no_chance

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Computes ``left operator right``; raises :class:`TooExpensive` where that is too much."""
        if operator == "+":
            if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
                _check_length(len(left) + len(right))
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            _check_bits(bits * max(0, right) if operator == "**" else bits + right.bit_length())
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, int) and isinstance(other, (str, list, tuple)):
                    _check_length(one * len(other))
        return super().call_binop(context, operator, left, right)

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


def _check_length(size: int) -> None:
    if size > MAX_RENDERED_CHARS:
        raise TooExpensive(
            f"it made a text or list of {size:,} parts; {MAX_RENDERED_CHARS:,} is the limit"
        )


def _check_bits(bits: int) -> None:
    if bits > MAX_INTEGER_BITS:
        raise TooExpensive(
            f"it computed an integer of about {bits:,} bits; {MAX_INTEGER_BITS:,} is the limit"
        )


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    """Jinja's filter, which computes ``10 ** precision``."""
    if abs(precision) > MAX_DIGITS:
        raise TooExpensive(f"it rounded to {precision:,} digits; {MAX_DIGITS} is the limit")
    return do_round(value, precision, method)


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


def _no_chance(values: object) -> NoReturn:
    raise TemplateRuntimeError("the filter 'random' is not available")


class Clock:
    """``strftime_now`` at a fixed time, so that all attempts of a job render the same prompt."""

    def __init__(self, unix_seconds: float) -> None:
        # UTC on every host, then without a time zone, as transformers' datetime.now() has none
        self._moment = datetime.fromtimestamp(unix_seconds, UTC).replace(tzinfo=None)

    def strftime_now(self, form: str) -> str:
        """Formats the time with a ``strftime`` format."""
        return self._moment.strftime(form)
