"""The rows of the failure matrix: what was measured, beside what is allowed.

``DEATHS`` says how often each event happens; once, unless figures are wanted.
"""

import os
import statistics
import sys
from collections.abc import Sequence

RUNS = int(os.environ.get("DEATHS", "1"))


def report(what: str, seconds: Sequence[float], limit: float) -> None:
    """Prints a row of the table in docs/reliability.md and checks it."""
    median, worst = statistics.median(seconds), max(seconds)
    row = f"| {what} | {len(seconds)} | {_text(median)} | {_text(worst)} | {_text(limit)} |"
    sys.stdout.write(f"\n{row}\n")
    assert worst <= limit


def _text(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 0.2 else f"{seconds:.2f} s"
