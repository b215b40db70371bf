"""One generation, as the scheduler and the runner see it; no torch, no text."""

from dataclasses import dataclass, field

from neuron.engine.blocks import Key, extend_keys
from neuron.ipc.messages import Add, SamplingParams


@dataclass(slots=True, eq=False)
class Sequence:
    """A sequence's tokens, how many of them the KV cache holds, and the blocks that hold them.

    There are no phases: a sequence always has *computed* out of *total* tokens, and every step
    computes some of the rest. When all are computed, the step yields the next token.
    """

    id: int
    sample: SamplingParams
    tokens: list[int]
    """The prompt, followed by the answer so far."""
    prompt_tokens: int
    limit: int
    """Most tokens it may ever have: prompt plus max_tokens, or the context limit."""
    deadline: float | None = None
    """Time on the engine's monotonic clock."""
    computed: int = 0
    cached: int = 0
    """Prompt tokens found in the prefix cache when it was first admitted."""
    admitted: bool = False
    """Whether it has run before (a preempted sequence waits again)."""
    blocks: list[int] = field(default_factory=list)
    """Only grows at its end; a changed table is a new list (``ranks/lines.py`` relies on that)."""
    keys: list[Key] = field(default_factory=list)
    """Keys of its full blocks, as far as they have been needed."""
    published: int = 0
    """Number of its blocks whose keys the pool knows."""

    @classmethod
    def from_add(cls, add: Add, context_limit: int, now: float = 0.0) -> "Sequence":
        """Makes a sequence with nothing computed; *add* has been checked (``request_checks``)."""
        left = add.seconds_left
        return cls(
            id=add.id,
            sample=add.sample,
            tokens=add.prompt + add.generated,
            prompt_tokens=len(add.prompt),
            limit=min(len(add.prompt) + add.sample.max_tokens, context_limit),
            deadline=None if left is None else now + left,
        )

    @property
    def total(self) -> int:
        """Number of tokens, prompt and answer so far."""
        return len(self.tokens)

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled; 1 while it decodes."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Number of answer tokens so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def uses_cache(self) -> bool:
        """Whether it may skip cached tokens; not if it needs their logits."""
        return self.sample.prompt_logprobs is None

    def full_keys(self) -> list[Key]:
        """The keys of all its full blocks."""
        extend_keys(self.keys, self.tokens)
        return self.keys
