"""How a model writes tool calls, derived from its chat template."""

from enum import Enum

THINK = "<think>"
THINK_END = "</think>"
CALL = "<tool_call>"
CALL_END = "</tool_call>"
FUNCTION = "<function="
PYTHON_TAG = "<|python_tag|>"
TOOL_CALLS = "[TOOL_CALLS]"
MARKS = (THINK, THINK_END, CALL, CALL_END, PYTHON_TAG, TOOL_CALLS, "[ARGS]", "[CALL_ID]")
"""Some vocabularies have these as control tokens, which are not text of an answer otherwise."""


class CallStyle(Enum):
    """A family of models that write tool calls in the same way."""

    HERMES = "hermes"
    """JSON in ``<tool_call>``: Qwen 2.5 and 3, Hermes, and most others."""
    XML = "xml"
    """``<function=…>`` in ``<tool_call>``: Qwen3-Coder and its successors. A call in one of these
    two styles is also understood in the other."""
    LLAMA = "llama"
    """Only JSON, perhaps after ``<|python_tag|>``: Llama 3."""
    MISTRAL = "mistral"
    """Calls after ``[TOOL_CALLS]``: Mistral."""

    @property
    def marks(self) -> tuple[str, ...]:
        """The marks that open a call anywhere in an answer."""
        return _MARKS[self]

    def beginning(self, name: str) -> str:
        """The text that begins a call, up to the arguments, or up to the name if *name* is empty.

        It ends at a token boundary of the model: no token would continue after a trailing space.
        """
        match self:
            case CallStyle.HERMES:
                start, end = f'{CALL}\n{{"name": "', '", "arguments":'
            case CallStyle.XML:
                start, end = f"{CALL}\n{FUNCTION}", ">\n"
            case CallStyle.LLAMA:
                start, end = '{"name": "', '", "parameters":'
            case CallStyle.MISTRAL:
                start, end = f'{TOOL_CALLS}[{{"name": "', '", "arguments":'
        return f"{start}{name}{end}" if name else start


_MARKS = {
    CallStyle.HERMES: (CALL,),
    CallStyle.XML: (CALL, FUNCTION),
    CallStyle.LLAMA: (PYTHON_TAG,),
    CallStyle.MISTRAL: (TOOL_CALLS,),
}


def style_of(template: str) -> CallStyle:
    """The style that a chat template shows to the model; *template* is its source."""
    if TOOL_CALLS in template:
        return CallStyle.MISTRAL
    if CALL in template:
        return CallStyle.XML if FUNCTION in template else CallStyle.HERMES
    if FUNCTION in template:
        return CallStyle.XML
    if PYTHON_TAG in template or ('"parameters"' in template and "ipython" in template):
        return CallStyle.LLAMA
    return CallStyle.HERMES
