"""Histograms that cost little for each observation.

prometheus-client's own walk their buckets in Python for every value, which is too much for every
token of every stream; here an observation is one bisection, and the walk happens at the scrape.
"""

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Histogram(Collector):  # type: ignore[misc]
    """One family, labelled by model."""

    def __init__(self, name: str, help_text: str, bounds: tuple[float, ...]) -> None:
        self._name = name
        self._help = help_text
        self._bounds = bounds
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, model: str, value: float, count: int = 1) -> None:
        """*count* times *value*."""
        counts = self._counts.get(model)
        if counts is None:
            counts = self._counts[model] = [0] * (len(self._bounds) + 1)
            self._sums[model] = 0.0
        counts[bisect_left(self._bounds, value)] += count
        self._sums[model] += value * count

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = HistogramMetricFamily(self._name, self._help, labels=["model"])
        names = [*map(str, self._bounds), "+Inf"]
        for model, counts in self._counts.items():
            running, buckets = 0, []
            for name, count in zip(names, counts, strict=True):
                running += count
                buckets.append((name, running))
            family.add_metric([model], buckets, self._sums[model])
        yield family
