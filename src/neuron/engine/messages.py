"""What the neuron service and an engine process say to each other.

The channel is a socketpair that carries length-prefixed msgpack (``channel.py``); the unions at
the bottom are decoded in one call. Sequence ids are integers that the service gives out, unique
for the life of the engine process.
"""

from enum import StrEnum

import msgspec

from protocol.generate import FinishReason


class Start(msgspec.Struct, frozen=True, tag="start"):
    """The first message to an engine: load this model and serve it.

    Numbers that are None are chosen by the engine from the model and the hardware, and reported
    back in :class:`Ready`.
    """

    model_dir: str
    """A folder with config.json, *.safetensors (single or with an index) and tokenizer.json."""
    device: str = "cpu"
    """``cpu`` or ``cuda:N``."""
    dtype: str = "auto"
    """``auto``, ``float32``, ``bfloat16`` or ``float16``. ``auto`` is the checkpoint's own, but
    float32 on a CPU without bfloat16 instructions."""
    max_running: int = 8
    """Sequences that may hold KV cache at once."""
    max_queued: int = 64
    """Sequences that may wait in the engine beyond those."""
    max_step_tokens: int | None = None
    """Token budget of one step, decode rows and prefill chunks together."""
    max_context: int | None = None
    """Upper bound for prompt plus answer; None = the model's own limit."""
    kv_cache_bytes: int | None = None
    """None = a share of free memory, never more than max_running full contexts need."""
    threads: int | None = None
    """Compute threads on a CPU; None = the physical cores this process may use."""


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sampling with every default resolved; the engine guesses nothing."""

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    choice: int = 0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    end_tokens: tuple[int, ...] = ()
    """Tokens that end the answer: the model's own set plus the request's. Empty under
    ``ignore_eos``."""


class Add(msgspec.Struct, frozen=True, tag="add"):
    """Generate: prompt tokens, and tokens that an earlier attempt already generated."""

    id: int
    prompt: list[int]
    sample: Sample
    generated: list[int] = []
    """Continue after these; they count as answer tokens (positions, max_tokens, stop texts), and
    are not reported again."""


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Drop a sequence: it takes part in no further step. Unknown ids are ignored."""

    id: int


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the process at once; running sequences are dropped."""


class LoadStage(StrEnum):
    """What a loading engine is doing."""

    CHECKING = "checking"
    READING = "reading"
    WARMING = "warming"


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """Progress of the load; at most a few per second."""

    stage: LoadStage
    done_bytes: int
    total_bytes: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded; Adds may come. Everything the node publishes about it."""

    architecture: str
    dtype: str
    context_limit: int
    """Tokens of prompt plus answer that one sequence may have."""
    max_running: int
    weight_bytes: int
    kv_cache_bytes: int
    kv_cache_tokens: int
    vocab_size: int
    load_seconds: float
    numerics: str
    """Two engines with the same text here compute bit-identical logits in exact mode: engine
    and torch version, device kind and instruction set, threads, dtype, attention path."""


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model cannot be loaded; the process ends after this message."""

    code: str
    """A value of :class:`neuron.models.errors.LoadCode`: ``not_found``, ``corrupt``,
    ``unsupported`` or ``out_of_memory``."""
    message: str
    """What, why (with the numbers) and what to do; made for people."""


class Output(msgspec.Struct, frozen=True, omit_defaults=True):
    """New tokens of one sequence in one step."""

    id: int
    index: int
    """How many tokens of the answer came before these (``Add.generated`` included)."""
    tokens: list[int]
    text: str = ""
    """Text that is now certain: whole characters, beyond the reach of any stop text."""
    finish: FinishReason | None = None
    stop_text: str = ""
    """The stop text that ended it, if one did."""


class Progress(msgspec.Struct, frozen=True):
    """A prefill chunk of one sequence that produced no token yet."""

    id: int
    computed: int
    total: int


class Step(msgspec.Struct, frozen=True, tag="step", omit_defaults=True):
    """What one engine step did. Every sequence that took part is in *outputs* or *progress*."""

    number: int
    tokens: int
    """Tokens computed, all sequences together."""
    seconds: float
    outputs: list[Output] = []
    progress: list[Progress] = []
    running: int = 0
    queued: int = 0
    kv_tokens_free: int = 0


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """An Add that can never run here (too long, bad token) or finds the queue full."""

    id: int
    code: str
    """A value of :class:`protocol.errors.ErrorCode`."""
    message: str


class Fatal(msgspec.Struct, frozen=True, tag="fatal"):
    """The engine cannot go on (device fault, bug); the process ends after this message."""

    message: str


class EngineStats(msgspec.Struct, frozen=True):
    """An engine's state after its last step, as ``client.py`` knows it; not on the channel."""

    open: int = 0
    """Streams that have not ended, from the service's view."""
    running: int = 0
    queued: int = 0
    kv_tokens_free: int = 0
    step_number: int = 0
    """0 before the first step."""
    step_seconds: float = 0.0
    step_age_seconds: float = 0.0
    """Since the last step arrived; large while there is nothing to do."""


ToEngine = Start | Add | Abort | Shutdown
FromEngine = Loading | Ready | LoadFailed | Step | Refused | Fatal
