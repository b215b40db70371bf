"""The rows of the failure matrix: what was measured, beside what is allowed.

``DEATHS`` says how often each event happens; once, unless figures are wanted.
"""

import os
import statistics
import sys
from collections.abc import Sequence

RUNS = int(os.environ.get("DEATHS", "1"))
SLACK_SECONDS = 0.0 if RUNS > 1 else 0.3
"""For how long the rest of the suite may hold up a single run; figures are taken without it."""


def report(what: str, seconds: Sequence[float], limit: float) -> None:
    """Prints a row of the table in docs/reliability.md and checks it, with some slack for a single
    run."""
    median, worst = statistics.median(seconds), max(seconds)
    row = f"| {what} | {len(seconds)} | {_text(median)} | {_text(worst)} | {_text(limit)} |"
    sys.stdout.write(f"\n{row}\n")
    assert worst <= limit + SLACK_SECONDS


def _text(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 0.2 else f"{seconds:.2f} s"
