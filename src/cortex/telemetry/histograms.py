"""Histograms that cost little per observation.

Those of prometheus-client walk their buckets in Python for every value, which is too much for every
token of every stream. Here an observation is one bisection, and the walk happens at the scrape.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Tally:
    """The number of values in each bucket, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """Adds *value*, *count* times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def merge(self, other: "Tally") -> None:
        """Adds the values of another tally that has the same bounds."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum


class Histogram(Collector):  # type: ignore[misc]
    """One metric family, labelled by model."""

    def __init__(self, name: str, help_text: str, bounds: tuple[float, ...]) -> None:
        self._name = name
        self._help = help_text
        self._bounds = bounds
        self._tallies: dict[str, Tally] = {}

    def of(self, model: str) -> Tally:
        """Returns the tally of one model."""
        tally = self._tallies.get(model)
        if tally is None:
            tally = self._tallies[model] = Tally(self._bounds)
        return tally

    def collect(self) -> Iterator[Metric]:
        """Collects the family for the registry."""
        family = HistogramMetricFamily(self._name, self._help, labels=["model"])
        names = [*map(str, self._bounds), "+Inf"]
        for model, tally in self._tallies.items():
            cumulative = accumulate(tally.counts)
            family.add_metric([model], list(zip(names, cumulative, strict=True)), tally.sum)
        yield family
