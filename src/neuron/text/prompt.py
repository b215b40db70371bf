"""A prompt, and what one may take: known to the service and to the text process that makes it."""

from typing import NamedTuple

from neuron.ipc.messages import SamplingParams

MAX_MESSAGES = 16_384
MAX_TOOLS = 16_384
MAX_STOPS = 1_024
MAX_BIASES = 16_384
MAX_ALLOWED = 1 << 20
"""Bounds on the lists of a request, far beyond what anybody sends: each step of the engine looks
through some of them."""
RENDER_SECONDS = 2.0
"""Processor time of all renderings of one request; real conversations take milliseconds."""
TOKENIZE_SECONDS = 1.0
"""Processor time for any text, however short."""
TOKENIZE_CHARS_PER_SECOND = 200_000
"""What a tokenizer must achieve at least; usual ones are ten times as fast."""
WHOLE_CHARS_PER_TOKEN = 16
"""A conversation that may be shortened is first tried as a whole up to this many characters for
each token of the context: beyond it, rendering it would only show that it is too long."""
TEMPLATE, TOKENIZER = "chat template", "tokenizer"
"""What work is called towards a :class:`Watch` and clients."""


class Rendering(NamedTuple):
    """A request's prompt, before it is checked against the context limit."""

    text: str
    tokens: list[int]
    opens_thinking: bool = False
    """Whether the prompt itself opened ``<think>``."""
    is_raw: bool = False
    """Whether no template made the prompt; the answer is then plain text."""
    begun: str = ""
    """End of the text that already belongs to the answer: the beginning of a forced tool call."""


class Prompt(NamedTuple):
    """A prompt and its sampling parameters, ready for the engine."""

    rendering: Rendering
    hash: str
    sample: SamplingParams

    @property
    def tokens(self) -> list[int]:
        """The prompt's token ids."""
        return self.rendering.tokens
