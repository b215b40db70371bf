"""Turns conversations into prompts with the very template that ships beside the weights."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

MODEL_FOLDER = Path(__file__).parent.parent / "src" / "neuron" / "demo_model"
"""The bundled demo model."""
TEMPLATE_FILE = MODEL_FOLDER / "chat_template.jinja"


def _to_json(value: object) -> str:
    # Jinja's own filter escapes for HTML, which no model has seen.
    return json.dumps(value, ensure_ascii=False)


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    return environment.from_string(TEMPLATE_FILE.read_text())


def prompt(
    messages: Sequence[Mapping[str, object]],
    tools: Sequence[Mapping[str, object]] = (),
    *,
    enable_thinking: bool,
) -> str:
    """The text up to where the model starts to write."""
    return _template().render(
        messages=messages,
        tools=tools or None,
        add_generation_prompt=True,
        enable_thinking=enable_thinking,
    )
