"""The life of a stream and of an attempt, as tables.

A *stream* is one answer as this gateway receives it, whoever computes it. An *attempt* is one try
of one neuron to compute it; when an attempt ends before the answer does, another one follows under
the next number. The tables are the whole truth: ``state`` and ``dispatch.attempts`` change phase
through :class:`Lifecycle` only, a step that a table does not have is a bug and raises
:class:`IllegalStep`, and the diagrams of docs/architecture.md are drawn from the tables. Pure.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Generic, TypeVar


class StreamPhase(StrEnum):
    """Where a stream is in its life."""

    WAITING = "waiting"
    """No neuron has accepted the present attempt yet."""
    RUNNING = "running"
    """A neuron has accepted it, and its frames count."""
    OVER = "over"
    """Nothing that arrives changes it any more."""


class StreamStep(StrEnum):
    """What can happen to a stream."""

    ACCEPTED = "accepted"
    OTHER_PROMPT = "accepted with another prompt"
    TOKENS = "tokens"
    GAP = "frames are missing"
    SIGN_OF_LIFE = "sign of life"
    FINISHED = "finished"
    FAILED = "failed for good"
    LOST = "refused, or its neuron is gone"
    NEXT_ATTEMPT = "next attempt"
    GIVEN_UP = "given up here"


class AttemptPhase(StrEnum):
    """Where the attempts of a request are."""

    QUEUED = "queued"
    """The request waits for its turn, or for another neuron to be found."""
    OFFERED = "offered"
    """One neuron has been asked directly."""
    HANDED_OVER = "handed over"
    """The job is in the stream JOBS, for any neuron."""
    ACCEPTED = "accepted"
    """A neuron has the job, or the stream is over."""


class AttemptStep(StrEnum):
    """What can happen to an attempt."""

    OFFER = "offer to one neuron"
    HAND_OVER = "hand over to all"
    ACCEPT = "accept"
    REFUSE = "refuse or stay silent"
    LOSE = "end before the answer does"


Phase = TypeVar("Phase", bound=StrEnum)
Step = TypeVar("Step", bound=StrEnum)
Table = Mapping[Phase, Mapping[Step, Phase]]

STREAM: Table[StreamPhase, StreamStep] = MappingProxyType(
    {
        StreamPhase.WAITING: {
            StreamStep.ACCEPTED: StreamPhase.RUNNING,
            StreamStep.OTHER_PROMPT: StreamPhase.WAITING,
            StreamStep.GAP: StreamPhase.WAITING,
            StreamStep.FAILED: StreamPhase.OVER,
            StreamStep.LOST: StreamPhase.WAITING,
            StreamStep.NEXT_ATTEMPT: StreamPhase.WAITING,
            StreamStep.GIVEN_UP: StreamPhase.OVER,
        },
        StreamPhase.RUNNING: {
            StreamStep.TOKENS: StreamPhase.RUNNING,
            StreamStep.GAP: StreamPhase.RUNNING,
            StreamStep.SIGN_OF_LIFE: StreamPhase.RUNNING,
            StreamStep.FINISHED: StreamPhase.OVER,
            StreamStep.FAILED: StreamPhase.OVER,
            StreamStep.LOST: StreamPhase.RUNNING,
            StreamStep.NEXT_ATTEMPT: StreamPhase.WAITING,
            StreamStep.GIVEN_UP: StreamPhase.OVER,
        },
        StreamPhase.OVER: {
            StreamStep.GIVEN_UP: StreamPhase.OVER,
        },
    }
)

ATTEMPT: Table[AttemptPhase, AttemptStep] = MappingProxyType(
    {
        AttemptPhase.QUEUED: {
            AttemptStep.OFFER: AttemptPhase.OFFERED,
            AttemptStep.HAND_OVER: AttemptPhase.HANDED_OVER,
        },
        AttemptPhase.OFFERED: {
            AttemptStep.ACCEPT: AttemptPhase.ACCEPTED,
            AttemptStep.REFUSE: AttemptPhase.QUEUED,
        },
        AttemptPhase.HANDED_OVER: {
            AttemptStep.ACCEPT: AttemptPhase.ACCEPTED,
            AttemptStep.REFUSE: AttemptPhase.QUEUED,
        },
        AttemptPhase.ACCEPTED: {
            AttemptStep.LOSE: AttemptPhase.QUEUED,
        },
    }
)


class IllegalStep(Exception):
    """A step that the table does not have: a bug of this gateway, not of anybody it talks to."""


class Lifecycle(Generic[Phase, Step]):
    """A phase that changes by the steps of one table."""

    def __init__(self, table: Table[Phase, Step], phase: Phase) -> None:
        self._table = table
        self.phase = phase

    def step(self, step: Step) -> Phase:
        """Takes *step* and returns the new phase; raises :class:`IllegalStep`."""
        try:
            self.phase = self._table[self.phase][step]
        except KeyError:
            raise IllegalStep(f"{step!r} while {self.phase!r}") from None
        return self.phase


def diagram(table: Table[Phase, Step], start: Phase) -> str:
    """Draws *table* as a Mermaid state diagram; steps between two phases share an arrow."""
    lines = ["stateDiagram-v2", f"    [*] --> {_name(start)}"]
    for phase, steps in table.items():
        arrows: dict[Phase, list[str]] = {}
        for step, following in steps.items():
            arrows.setdefault(following, []).append(step.value)
        lines += [
            f"    {_name(phase)} --> {_name(following)}: {' / '.join(labels)}"
            for following, labels in arrows.items()
        ]
    return "\n".join(lines)


def _name(phase: StrEnum) -> str:
    return phase.value.replace(" ", "_")
