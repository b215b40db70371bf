"""Chat templates that try to take all memory or time: from every filter, test, operator, method and
global of the real environment, with huge arguments."""

from collections.abc import Iterator
from pathlib import Path

from neuron.text.sandbox import TemplateEnvironment
from tests.neuron.text.models import make_model

HUGE = "4000000000"
_SUBJECTS = (
    "'x y'",
    "7",
    "0.5",
    "[3, 1, 2]",
    "{'a': 1}",
    "('x y ' * 3000000)",
    "(range(99999) | list)",
)
_FILTER_ARGUMENTS = ("", f"({HUGE})", f"(2, {HUGE})", "('x' * 3000000)", f"(indent={HUGE})")
_OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in")
_METHODS = (
    "center", "ljust", "rjust", "zfill", "expandtabs", "replace", "join", "split", "splitlines",
    "format", "encode", "count", "translate", "title", "partition", "to_bytes", "from_bytes",
)  # fmt: skip
LOOPS = (
    "{% set ns = namespace(s='xy') %}{% for i in range(99999) %}{% set ns.s = ns.s + ns.s %}"
    "{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s='xy') %}{% for i in range(99999) %}{% set ns.s = ns.s ~ ns.s %}"
    "{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=3) %}{% for i in range(99999) %}{% set ns.s = ns.s * ns.s %}"
    "{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(99999) %}{% set ns.s = [ns.s, ns.s] %}"
    "{% endfor %}{{ ns.s }}",
    "{% for i in range(99999) %}{% set x = ('x y' * 300000) | upper | list | sort %}{% endfor %}",
    "{% for i in range(99999) %}{{ (range(99999) | list) | join }}{% endfor %}",
    "{% for i in range(99999) %}{% if i in (range(99999) | list) %}{% endif %}{% endfor %}",
    "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) }}{% endmacro %}{{ m(40) }}",
    "{{ 2 ** (10 ** 9) is odd }}",
    "{{ (2 ** 60000) ** 60000 }}",
    "{{ 'x' * 3000000000 }}",
    "{{ [0] * 3000000000 }}",
    "{{ '%4000000000d' % 1 }}",
    "{{ '%4000000000d' | format(1) }}",
    "{{ '{:4000000000}'.format(1) }}",
    "{{ ('a' * 30000000) | replace('a', 'b' * 3000) }}",
    "{{ ('a' * 3000000) | urlize | wordwrap(1) }}",
    "{{ ('a.' * 3000000 + '@') | urlize }}",
    "{{ ('<' * 3000000) | striptags }}",
    "{{ {'a': [1, 2, {'b': 3}]} | tojson(indent=10000000) }}",
    "{{ (range(99999) | list) | slice(500000000) | list }}",
    "{{ (range(99999) | list) | batch(2, 'x') | list | tojson(indent=9) | indent(9999) }}",
    "{{ 5 | round(1000000000) }}{{ 5 | round(1000000000, 'floor') }}",
    "{{ '9' * 4000000 | int }}{{ ('9' * 4000000) | int }}",
)  # fmt: skip


def bombs() -> Iterator[str]:
    """All of them: templates that compile."""
    environment = TemplateEnvironment()
    names = sorted(name for name in environment.filters if name.isidentifier())
    for subject in _SUBJECTS:
        for name in names:
            yield from (f"{{{{ {subject} | {name}{given} }}}}" for given in _FILTER_ARGUMENTS)
        for name in sorted(name for name in environment.tests if name.isidentifier()):
            for given in ("", f"({HUGE})"):
                yield f"{{{{ {subject} is {name}{given} }}}}"
        for operator in _OPERATORS:
            for other in (HUGE, *_SUBJECTS):
                yield f"{{{{ {subject} {operator} {other} }}}}"
        for method in _METHODS:
            for given in ("", HUGE, f"{HUGE}, 'x'", "'x', 'y' * 3000000", "['x'] * 3000000"):
                yield f"{{{{ {subject}.{method}({given}) }}}}"
    for name in sorted(environment.globals):
        yield from (f"{{{{ {name}({given}) }}}}" for given in ("", HUGE, "'x' * 3000000"))
    yield from LOOPS


def model_of(folder: Path, templates: list[str]) -> Path:
    """A model whose template is the one among *templates* that the first message numbers; the
    others are in branches that are not taken."""
    branches = "".join(
        f"{{% {'elif' if number else 'if'} messages[0].content == '{number}' %}}{template}"
        for number, template in enumerate(templates)
    )
    return make_model(folder, template=branches + "{% else %}fine{% endif %}")
