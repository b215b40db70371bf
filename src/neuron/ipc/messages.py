"""The messages between the neuron service and an engine process.

The channel is a socketpair that carries length-prefixed msgpack (``channel.py``); the unions at the
bottom are decoded in one call. Sequence ids are integers that the service assigns, unique for the
life of the engine process.
"""

from enum import StrEnum

import msgspec

from protocol.generate import FinishReason


class Findings(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an engine found out by trying a model's kernels on this machine."""

    kernel: str
    """That of the linear maps, a value of ``neuron.layers.linear.Kernel``."""
    least_rows: int
    """Rows to which smaller batches must be padded for exact results."""
    exact: bool
    padded_rows: int
    """Rows to which they are padded, because that is quicker."""
    notes: tuple[str, ...] = ()


class Start(msgspec.Struct, frozen=True, tag="start"):
    """The first message to an engine: load this model and serve it.

    Numbers that are None are chosen by the engine from the model and the hardware, and reported in
    :class:`Ready`.
    """

    model_dir: str
    """A folder with config.json, *.safetensors (single or with an index) and tokenizer.json."""
    device: str = "cpu"
    """This rank's device, ``cpu`` or ``cuda:N``."""
    devices: tuple[str, ...] = ()
    """The devices of all ranks, where several share the model; else empty."""
    dtype: str = "auto"
    """``auto``, ``float32``, ``bfloat16`` or ``float16``. ``auto`` is the checkpoint's own dtype,
    except on a CPU without bfloat16 instructions, where it is float32."""
    exact: bool | None = None
    """Logits that are bit-identical in every batch; None = where the device can."""
    reference: bool = False
    """Compute with the plain torch path on any device: slow, and the oracle of the others."""
    max_running: int = 8
    """Sequences that may hold KV cache at the same time."""
    max_queued: int = 64
    """Further sequences that may wait in the engine."""
    max_step_tokens: int | None = None
    """Token budget of one step, decode rows and prefill chunks together."""
    max_context: int | None = None
    """Upper limit on prompt plus answer, in tokens; None = the model's own limit."""
    kv_cache_bytes: int | None = None
    """None = a share of free memory, at most what max_running full contexts need."""
    threads: int | None = None
    """Compute threads of all ranks together on a CPU; None = the physical cores they may use."""
    findings: dict[str, Findings] = {}
    """What engines found out before, as they reported it in :class:`Ready`; the rest is tried."""


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """May come before :class:`Start`: do what needs neither device nor much memory for a model that
    is probably loaded next."""

    model_dir: str


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sampling parameters with every default resolved; the engine guesses nothing.

    Logits are processed in vLLM's order: ``allowed_tokens``, ``bad_tokens``, ``min_tokens``,
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
    """No end token is sampled before this many tokens, unless no other token is allowed."""
    stop: tuple[str, ...] = ()
    end_tokens: tuple[int, ...] = ()
    """Tokens that end the answer: the model's own and the request's. Empty with ``ignore_eos``."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that the answer already contains."""
    frequency_penalty: float = 0.0
    """Subtracted once for each occurrence of the token in the answer."""
    repetition_penalty: float = 1.0
    """Divides the logit of every token in prompt and answer if positive, else multiplies it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token id and the number to add to its logit."""
    allowed_tokens: tuple[int, ...] | None = None
    """The only tokens that may be sampled; None = all."""
    bad_tokens: tuple[int, ...] = ()
    """Tokens that are never sampled."""
    logprobs: int | None = None
    """Report the logprob of each token, and of this many top tokens; None = off."""
    prompt_logprobs: int | None = None
    """The same for each prompt token but the first, once, with the first output."""


class Add(msgspec.Struct, frozen=True, tag="add"):
    """Generate from prompt tokens, and from tokens that an earlier attempt already generated."""

    id: int
    prompt: list[int]
    sample: SamplingParams
    generated: list[int] = []
    """Tokens to continue after; they count as answer tokens (positions, max_tokens, stop texts).
    Their texts come with the first output, as :attr:`Output.replayed`."""
    seconds_left: float | None = None
    """Seconds until the sequence is refused with ``timeout``; None = no limit."""


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Drop a sequence: it takes part in no further step. Unknown ids are ignored."""

    id: int


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the process at once and drop running sequences."""


class LoadStage(StrEnum):
    """What a loading engine is doing."""

    CHECKING = "checking"
    READING = "reading"
    WARMING = "warming"


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """Progress of the load, sent at most a few times per second."""

    stage: LoadStage
    done_bytes: int
    total_bytes: int
    pids: tuple[int, ...] = ()
    """The processes that load, as the service notes; an engine does not fill it in."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded and Adds may come. Holds everything the node publishes about it."""

    architecture: str
    dtype: str
    context_limit: int
    """Most tokens of prompt plus answer that one sequence may have."""
    max_running: int
    weight_bytes: int
    kv_cache_bytes: int
    kv_cache_tokens: int
    kv_cache_why: str
    """How that size was determined, with the numbers."""
    vocab_size: int
    load_seconds: float
    exact: bool
    """Whether logits are bit-identical in every batch."""
    numerics: str
    """Names the numerics: two engines with the same text compute bit-identical logits in exact
    mode. Covers engine and torch version, device kind and instruction set, threads, dtype,
    kernels."""
    notes: tuple[str, ...] = ()
    """What this machine cannot do, for the operator."""
    findings: dict[str, Findings] = {}
    """What was tried or taken over, for later loads of the same shapes."""
    stage_seconds: dict[str, float] = {}
    """How long each part of the load took, by a word for people, in order."""


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model cannot be loaded; the process ends after this message."""

    code: str
    """A value of :class:`neuron.models.errors.LoadCode`: ``not_found``, ``corrupt``,
    ``unsupported`` or ``out_of_memory``."""
    message: str
    """What happened, why (with the numbers) and what to do, for people."""


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural logprobs at one position, of the model's own distribution: before bias, penalties,
    temperature and truncation. All are finite."""

    token: float
    """Logprob of the token at this position."""
    top: list[tuple[int, float]] = []
    """Ids and logprobs of the top tokens, in descending order; ties by id."""


class Output(msgspec.Struct, frozen=True, omit_defaults=True):
    """New tokens of one sequence in one step."""

    id: int
    index: int
    """Number of answer tokens before these (``Add.generated`` included)."""
    tokens: list[int]
    text: str = ""
    """Text that is now final: whole characters, and out of reach of any stop text."""
    finish: FinishReason | None = None
    stop_text: str = ""
    """The stop text that ended the answer, if one did."""
    logprobs: list[Logprobs] = []
    """Parallel to *tokens* if requested, else empty."""
    prompt_logprobs: list[Logprobs] | None = None
    """One entry for each prompt token but the first, with the output of index 0 if requested. An
    answer that continues after ``Add.generated`` does not repeat them."""
    cached: int = 0
    """With the first output: prompt tokens found in the prefix cache."""
    replayed: list[str] = []
    """With the first output: what each token of ``Add.generated`` added to the text."""


class Progress(msgspec.Struct, frozen=True):
    """Prefill progress of one sequence that has not produced a token yet."""

    id: int
    computed: int
    total: int


class Step(msgspec.Struct, frozen=True, tag="step", omit_defaults=True):
    """What one engine step did. Every sequence that took part is in *outputs* or *progress*."""

    number: int
    tokens: int
    """Tokens computed, of all sequences together."""
    seconds: float
    outputs: list[Output] = []
    progress: list[Progress] = []
    running: int = 0
    queued: int = 0
    kv_tokens_free: int = 0
    """Free tokens of the KV cache, cached ones included."""
    kv_tokens_cached: int = 0
    preemptions: int = 0
    """Sequences preempted since the engine started."""
    prefixes: tuple[str, ...] | None = None
    """The prompt prefixes in the prefix cache, latest first; None = unchanged."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Rejects an Add that can never run here (too long, bad token) or finds the queue full."""

    id: int
    code: str
    """A value of :class:`protocol.errors.ErrorCode`."""
    message: str


class Fatal(msgspec.Struct, frozen=True, tag="fatal"):
    """The engine cannot go on (device fault, bug). The process ends after this message."""

    message: str


class EngineStats(msgspec.Struct, frozen=True):
    """An engine's state after its last step, as ``client.py`` knows it; not sent on the channel."""

    open: int = 0
    """Streams that have not ended, as the service sees it."""
    running: int = 0
    queued: int = 0
    kv_tokens_free: int = 0
    kv_tokens_cached: int = 0
    preemptions: int = 0
    prefixes: tuple[str, ...] = ()
    step_number: int = 0
    """0 until the first step."""
    step_seconds: float = 0.0
    step_age_seconds: float = 0.0
    """Seconds since the last step arrived; grows while there is nothing to do."""


ToEngine = Prepare | Start | Add | Abort | Shutdown
FromEngine = Loading | Ready | LoadFailed | Step | Refused | Fatal
