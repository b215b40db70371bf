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
    devices: tuple[str, ...] = ()
    """Of all ranks, where several share the model; each rank is told its own as *device*."""
    dtype: str = "auto"
    """``auto``, ``float32``, ``bfloat16`` or ``float16``. ``auto`` is the checkpoint's own, but
    float32 on a CPU without bfloat16 instructions."""
    exact: bool | None = None
    """Logits that do not depend on the batch to the bit; None = where the device can."""
    reference: bool = False
    """Compute with the plain-torch path, whatever the device: slow, and the others' oracle."""
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
    """Compute threads of all ranks together on a CPU; None = the physical cores that they may
    use."""


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sampling with every default resolved; the engine guesses nothing.

    What changes logits does so in vLLM's order: ``allowed_tokens``, ``bad_tokens``, ``min_tokens``,
    ``logit_bias``, ``repetition_penalty``, ``frequency_penalty``, ``presence_penalty``; then
    temperature, top-k, top-p, min-p.
    """

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    choice: int = 0
    min_tokens: int = 0
    """No end token is chosen before this many tokens, unless nothing else may be chosen."""
    stop: tuple[str, ...] = ()
    end_tokens: tuple[int, ...] = ()
    """Tokens that end the answer: the model's own set plus the request's. Empty under
    ``ignore_eos``."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that the answer holds already."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time that the answer holds the token."""
    repetition_penalty: float = 1.0
    """Divides a positive logit, multiplies another one, of every token of prompt and answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token id and what is added to its logit."""
    allowed_tokens: tuple[int, ...] | None = None
    """Only these can be chosen; None = all."""
    bad_tokens: tuple[int, ...] = ()
    """These are never chosen."""
    logprobs: int | None = None
    """Report the log-probability of each token, and of that many best ones; None = off."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt but the first, once, with the first output."""


class Add(msgspec.Struct, frozen=True, tag="add"):
    """Generate: prompt tokens, and tokens that an earlier attempt already generated."""

    id: int
    prompt: list[int]
    sample: SamplingParams
    generated: list[int] = []
    """Continue after these; they count as answer tokens (positions, max_tokens, stop texts). Their
    texts come with the first output, as :attr:`Output.replayed`."""
    seconds_left: float | None = None
    """Until it is refused with ``timeout``; None = it may take as long as it takes."""


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
    kv_cache_why: str
    """Where that size comes from, with the numbers."""
    vocab_size: int
    load_seconds: float
    exact: bool
    """Logits do not depend on the batch, to the bit."""
    numerics: str
    """Two engines with the same text here compute bit-identical logits in exact mode: engine
    and torch version, device kind and instruction set, threads, dtype, kernels."""
    notes: tuple[str, ...] = ()
    """What this machine could not do, for the operator."""


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model cannot be loaded; the process ends after this message."""

    code: str
    """A value of :class:`neuron.models.errors.LoadCode`: ``not_found``, ``corrupt``,
    ``unsupported`` or ``out_of_memory``."""
    message: str
    """What, why (with the numbers) and what to do; made for people."""


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural log-probabilities at one position, of the model's own distribution: before bias,
    penalties, temperature and truncation. All are finite."""

    token: float
    """Of the token that is there."""
    top: list[tuple[int, float]] = []
    """The best token ids with theirs, descending; equal ones by id."""


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
    logprobs: list[Logprobs] = []
    """Parallel to *tokens* if asked for, else empty."""
    prompt_logprobs: list[Logprobs] | None = None
    """For the second to the last token of the prompt, with the output of index 0 if asked for. An
    answer that is continued after ``Add.generated`` has them behind it."""
    cached: int = 0
    """With the first output: prompt tokens that the prefix cache held."""
    replayed: list[str] = []
    """With the first output: what each token of ``Add.generated`` added to the text."""


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
    """The cached ones are among them."""
    kv_tokens_cached: int = 0
    preemptions: int = 0
    """Since the engine started."""
    prefixes: tuple[str, ...] | None = None
    """The beginnings of prompts in the prefix cache, the latest first; None = as before."""


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
    kv_tokens_cached: int = 0
    preemptions: int = 0
    prefixes: tuple[str, ...] = ()
    step_number: int = 0
    """0 before the first step."""
    step_seconds: float = 0.0
    step_age_seconds: float = 0.0
    """Since the last step arrived; large while there is nothing to do."""


ToEngine = Start | Add | Abort | Shutdown
FromEngine = Loading | Ready | LoadFailed | Step | Refused | Fatal
