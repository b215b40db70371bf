"""The messages between the neuron service and a text process.

They travel like those of an engine (``channel.py``). A text process answers one request after the
other, in order: ``LoadText`` comes first. Before work that may take long it says :class:`Working`.
"""

import msgspec

from neuron.ipc.messages import SamplingParams
from protocol.errors import WireError


class LoadText(msgspec.Struct, frozen=True, tag="load"):
    """Read the template and the tokenizer of a model; answered by :class:`TextLoaded`."""

    folder: str
    call_style: str
    """How the model writes tool calls, or ``auto``."""


class PromptJob(msgspec.Struct, frozen=True):
    """What decides on a job's prompt and sampling beside its request."""

    context_limit: int
    """Tokens that prompt and answer may have."""
    vocab_size: int
    """Tokens that the engine can choose from."""
    rendered_at: float = 0.0
    prompt_hash: str = ""
    seed: int = 0
    choice: int = 0


class PrepareText(msgspec.Struct, frozen=True, tag="prepare"):
    """Prepare a job's prompt; answered by :class:`Prepared`."""

    request: bytes
    """A ``GenerateRequest`` as JSON."""
    job: PromptJob


class RenderText(msgspec.Struct, frozen=True, tag="render"):
    """Answer a ``protocol.render.Render``; answered by :class:`RenderedText`."""

    asked: bytes
    """The ``Render`` as JSON."""
    context_limit: int
    """What to answer for it."""
    max_answer_bytes: int
    """What a message on the bus may have."""


class ListVocabulary(msgspec.Struct, frozen=True, tag="list_vocabulary"):
    """Give the texts of all tokens; answered by :class:`TokenTexts`."""


ToText = LoadText | PrepareText | RenderText | ListVocabulary


class Working(msgspec.Struct, frozen=True, tag="working"):
    """The process begins something that a hostile model or request can make long."""

    what: str
    """For people: the file that it reads, or what it uses."""
    cpu_seconds: float
    """Processor time after which it must be ended; 0 = only the clock counts."""
    why: str = ""
    """What the limit depends on, for people."""


class TextLoaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The process can work."""

    call_style: str
    marks: dict[int, str]
    """Control tokens that mark parts of an answer, by their ids."""
    identity: str
    """Equal for files that give equal prompts."""
    file_bytes: int
    """Size of tokenizer.json."""


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """A prompt that the engine can read; see ``neuron.text.prompt``."""

    tokens: bytes
    """Token ids of 32 bits in this machine's byte order."""
    hash: str
    sample: SamplingParams
    text: str
    """Only where the answer begins with it; else empty."""
    opens_thinking: bool
    is_raw: bool
    begun: str


class RenderedText(msgspec.Struct, frozen=True, tag="rendered"):
    """A ``protocol.render.Rendered`` as JSON."""

    answer: bytes


class TokenTexts(msgspec.Struct, frozen=True, tag="token_texts"):
    """The arguments of ``neuron.text.vocabulary.Vocabulary``."""

    text: bytes
    ends: bytes


class TextRefused(msgspec.Struct, frozen=True, tag="refused"):
    """The request is impossible, or, before :class:`TextLoaded`, the model is."""

    error: WireError
    is_last: bool = False
    """Whether the process must be replaced: a library has failed, and may be in any state."""


TextAnswer = TextLoaded | Prepared | RenderedText | TokenTexts | TextRefused
FromText = Working | TextAnswer
