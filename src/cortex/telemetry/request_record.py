"""The record of one request: its times, tokens and fate.

The metrics and the log line are both made from it.
"""

import time
from collections.abc import Callable
from enum import StrEnum

from cortex.streams.events import Broken, Ended, Event, Parts, Started
from cortex.telemetry.histograms import Tally
from protocol.generate import Usage
from protocol.job import Job

GAP_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


_KEPT_WAITS = 20


class Continuity(StrEnum):
    """How an answer survived the failures of the neurons that computed it."""

    UNDISTURBED = "undisturbed"
    EXACT = "exact"
    """It moved, and is bit-identical to an answer that did not."""
    CONTINUED = "continued"
    """It moved to a machine that rounds differently: correct, but perhaps in other words."""


class Record:
    """The record of one request, filled in while it runs."""

    def __init__(self, job: Job, clock: Callable[[], float] = time.monotonic) -> None:
        self.id = job.id
        self.model = job.request.model
        self.node = ""
        """The last node that accepted it."""
        self.was_near: bool | None = None
        """Whether a node that had the prompt's prefix accepted it; None when none was asked."""
        self.waited_for: list[str] = []
        self._wait_ends = 0.0
        """What its model's load went through while it waited, the latest last."""
        self.moves = 0
        """How often it left a neuron that had accepted it."""
        self.continuity = Continuity.UNDISTURBED
        self.prompt_tokens = 0
        self.tokens = 0
        self.usage: Usage | None = None
        """Token counts, once the answer is complete."""
        self.error = ""
        """Code of the error that ended it."""
        self.gaps = Tally(GAP_BOUNDS)
        """Seconds between consecutive tokens."""
        self._clock = clock
        self._began = self._last = clock()
        self._turn: float | None = None
        self._first: float | None = None
        self._ended: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds from admission to the end, or until now."""
        return (self._ended if self._ended is not None else self._clock()) - self._began

    @property
    def queue_seconds(self) -> float | None:
        """Seconds spent in this gateway's queue; None when it never left the queue."""
        return None if self._turn is None else self._turn - self._began

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds from admission to the first token."""
        return None if self._first is None else self._first - self._began

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second after the first token."""
        if self._first is None or self.tokens < 2 or self._last <= self._first:
            return 0.0
        return (self.tokens - 1) / (self._last - self._first)

    def had_turn(self) -> None:
        """Records that it left the queue."""
        self._turn = self._clock()

    def moved(self, *, exact: bool) -> None:
        """Records that another neuron has continued it."""
        self.moves += 1
        if not exact:
            self.continuity = Continuity.CONTINUED
        elif self.continuity is Continuity.UNDISTURBED:
            self.continuity = Continuity.EXACT

    def saw(self, event: Event) -> None:
        """Records an event that reached the client's side."""
        if isinstance(event, Parts):  # the one that comes with every token
            now = self._clock()
            if self._first is None:
                self._first = now
            else:
                tokens = event.tokens or 1
                self.gaps.add((now - self._last) / tokens, tokens)
            self._last = now
            self.tokens += event.tokens
            return
        match event:
            case Started(node, prompt_tokens, _):
                self.node, self.prompt_tokens = node, prompt_tokens
            case Ended(usage=usage):
                self.usage = usage
                self._ended = self._clock()
            case Broken(error):
                self.error = error.code
                self._ended = self._clock()

    def told(self, outcome: str) -> dict[str, object]:
        """Renders the record for ``GET /requests``; times in seconds."""
        usage = self.usage
        return {
            "id": self.id,
            "model": self.model,
            "node": self.node or None,
            "outcome": outcome,
            "error": self.error or None,
            "waited_for": self.waited_for,
            "waiting": self._waiting(),
            "queue_seconds": self.queue_seconds,
            "first_token_seconds": self.first_token_seconds,
            "seconds": self.seconds,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": usage.cached_tokens if usage else None,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "moves": self.moves,
            "continuity": self.continuity,
        }

    def waits_for(self, what: str, left: float) -> bool:
        """Records how far its model's load is while it waits in the queue, and how many seconds
        are *left* at the most; returns whether *what* is new."""
        self._wait_ends = self._clock() + left
        if not what or (self.waited_for and self.waited_for[-1] == what):
            return False
        self.waited_for = [*self.waited_for[-_KEPT_WAITS + 1 :], what]
        return True

    def _waiting(self) -> dict[str, object] | None:
        """What it waits for, since when, and for how much longer at the most; None when it does
        not."""
        if self._turn is not None or self._ended is not None or not self.waited_for:
            return None
        now = self._clock()
        return {
            "for": self.waited_for[-1],
            "seconds": now - self._began,
            "at_most_seconds": max(0.0, self._wait_ends - now),
        }

    def line(self, outcome: str) -> str:
        """Renders the record as a log line."""
        first = self.first_token_seconds
        facts: dict[str, object] = {
            "model": self.model,
            "node": self.node or "-",
            "outcome": outcome,
            "error": self.error or "-",
            "prompt": self.prompt_tokens,
            "tokens": self.tokens,
            "ttft": "-" if first is None else f"{first:.3f}s",
            "near": {None: "-", True: "yes", False: "no"}[self.was_near],
            "rate": f"{self.tokens_per_second:.1f}/s",
            "seconds": f"{self.seconds:.3f}",
            "moves": self.moves,
            "continuity": self.continuity,
        }
        return f"request {self.id} " + " ".join(f"{k}={v}" for k, v in facts.items())
