"""One generation as the scheduler and the runner see it; no torch, no text."""

from dataclasses import dataclass, field

from neuron.engine.messages import Add, Sample


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens, how many of them the KV cache holds, and the blocks that hold them.

    There are no phases: a sequence is always *computed* tokens out of *total*, and every step
    gives it tokens to catch up. When it has caught up, the step yields its next token.
    """

    id: int
    sample: Sample
    tokens: list[int]
    """The prompt, then the answer so far."""
    prompt_tokens: int
    limit: int
    """The most tokens it may ever have: prompt plus max_tokens, or the context limit."""
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    first_block: int | None = None
    """Set while its blocks are consecutive, so that they can be viewed instead of gathered."""

    @classmethod
    def from_add(cls, add: Add, context_limit: int) -> "Sequence":
        """A sequence that has computed nothing yet; *add* has been checked (``admission.py``)."""
        return cls(
            id=add.id,
            sample=add.sample,
            tokens=add.prompt + add.generated,
            prompt_tokens=len(add.prompt),
            limit=min(len(add.prompt) + add.sample.max_tokens, context_limit),
        )

    @property
    def total(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.tokens)

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled; 1 while it decodes."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_tokens
