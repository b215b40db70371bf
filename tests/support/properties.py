"""How many examples a property is tried on: few enough for every run, many where time allows."""

import os

from hypothesis import settings

FACTOR = float(os.environ.get("EXAMPLES", "1"))
"""Times as many as usual; ``EXAMPLES=50 bin/test -k properties`` is for a night."""


def examples(usual: int) -> settings:
    """Decorates a property that is tried on *usual* examples in the suite."""
    return settings(max_examples=round(usual * FACTOR), deadline=None)
