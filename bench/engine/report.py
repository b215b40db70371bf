"""The tables of a run, in Markdown: figures, memory, and how many times as good ours is.

Owns how samples are summarised: medians over repeats; ratios are medians of the ratios within a
repeat, so that both sides saw the same minutes of the machine. ``~`` marks what was taken beside
foreign work.
"""

import statistics
from collections.abc import Iterable, Sequence

import msgspec

from bench.engine.figures import FIGURES, STEP, Figure
from bench.engine.loads import GUIDE, Load
from bench.engine.peer import CONTESTANTS, Maker
from bench.engine.samples import Sample, Store

MARK = "~"
NOTHING = "–"


class Report:
    """The tables of one store."""

    def __init__(self, store: Store, loads: Sequence[Load], quiet_limit: float) -> None:
        self._store, self._loads, self._limit = store, loads, quiet_limit
        taken = {sample.contestant for sample in store.samples}
        self._columns = [name for name in CONTESTANTS if name in taken]

    def render(self) -> str:
        """The whole report."""
        header = self._store.header
        ours = [n for n in self._columns if CONTESTANTS[n].maker is Maker.OURS]
        parts = [
            f"# Engine benchmark at {header.commit}",
            f"{header.machine}; {header.threads} threads; {header.model}. Medians. `{MARK}`: "
            f"others used {self._limit:.0%} of the machine or more meanwhile.",
            "## Figures",
            self._figures(),
            *(part for name in ours for part in (f"## {name} against", self._ratios(name))),
            "## Memory (MiB) and load",
            self._memory(),
            "## Contestants",
            *(f"- **{name}**: {about}" for name, about in self._store.about.items()),
            *self._failures(),
        ]
        return "\n\n".join(parts) + "\n"

    def _figures(self) -> str:
        rows = []
        for load in self._loads:
            for figure in FIGURES[load.kind]:
                cells = [self._cell(name, load, figure) for name in self._columns]
                rows.append([f"{load.name}: {figure.name}, {figure.unit}", *cells])
            if load.sampled:
                cells = [self._sampling_cost(name, load) for name in self._columns]
                rows.append([f"{load.name}: step over greedy", *cells])
        return table(["load", *self._columns], rows)

    def _ratios(self, ours: str) -> str:
        peers = [name for name in self._columns if name != ours]
        rows = []
        for load in self._loads:
            figure = FIGURES[load.kind][0]
            cells = [self._ratio(ours, peer, load, figure) for peer in peers]
            rows.append([f"{load.name}: {figure.name}", *cells])
        return table(["times as good", *peers], rows)

    def _cell(self, name: str, load: Load, figure: Figure) -> str:
        samples = [s for s in self._samples(name, load).values() if not s.error]
        if not samples:
            return NOTHING
        value = statistics.median(sample.figures[figure.name] for sample in samples)
        return self._mark(samples) + show(value)

    def _ratio(self, ours: str, peer: str, load: Load, figure: Figure) -> str:
        return self._median_ratio(self._samples(ours, load), self._samples(peer, load), figure)

    def _median_ratio(
        self, mine: dict[int, Sample], theirs: dict[int, Sample], figure: Figure
    ) -> str:
        """How many times as good *mine* are."""
        ratios: list[float] = []
        used: list[Sample] = []
        for repeat in sorted(mine.keys() & theirs.keys()):
            pair = mine[repeat], theirs[repeat]
            if not any(sample.error for sample in pair):
                a, b = (sample.figures[figure.name] for sample in pair)
                ratios.append(a / b if figure.more_is_better else b / a)
                used += pair
        return self._mark(used) + f"{statistics.median(ratios):.2f}" if ratios else NOTHING

    def _sampling_cost(self, name: str, load: Load) -> str:
        """The step time of *load* over that of GUIDE, within a repeat."""
        greedy = msgspec.structs.replace(load, name=GUIDE)
        hot, cold = self._samples(name, load), self._samples(name, greedy)
        return self._median_ratio(cold, hot, STEP)

    def _samples(self, name: str, load: Load) -> dict[int, Sample]:
        """The best try of each repeat."""
        repeats = {
            s.repeat for s in self._store.samples if (s.contestant, s.load) == (name, load.name)
        }
        found = {repeat: self._store.best(name, load.name, repeat) for repeat in repeats}
        return {repeat: sample for repeat, sample in found.items() if sample is not None}

    def _mark(self, samples: Iterable[Sample]) -> str:
        return MARK if any(sample.foreign >= self._limit for sample in samples) else ""

    def _memory(self) -> str:
        rows = [
            [
                name,
                *(show(v) for v in (m.private_loaded, m.private_peak, m.resident_peak)),
                f"{m.load_seconds:.1f}",
            ]
            for name in self._columns
            if (m := self._store.memory.get(name)) is not None
        ]
        titles = ["", "private, loaded", "private, peak", "resident with files, peak", "load, s"]
        return table(titles, rows)

    def _failures(self) -> list[str]:
        failed = [
            f"- {sample.contestant}, {sample.load}: {sample.error}"
            for sample in self._store.samples
            if sample.error
        ]
        return ["## Failures", *dict.fromkeys(failed)] if failed else []


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show(value: float) -> str:
    """Three digits are more than a machine repeats."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
