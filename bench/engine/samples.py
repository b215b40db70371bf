"""The samples of a run: appended to a file as they are taken, so that a run can be resumed.

Owns the file and what counts as disturbed. Must not know how figures are shown.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec


class Sample(msgspec.Struct, frozen=True):
    """One contestant, one load, once."""

    contestant: str
    load: str
    repeat: int
    figures: dict[str, float]
    foreign: float
    """The share of the machine that others used meanwhile; 0 … 1."""
    error: str = ""


class Memory(msgspec.Struct, frozen=True):
    """What a contestant took in one run, in MiB."""

    private_loaded: float
    private_peak: float
    """Anonymous memory only; sampled four times a second."""
    resident_peak: float
    """With the pages of files that it has mapped."""
    load_seconds: float


class Header(msgspec.Struct, frozen=True):
    """What a run is of. Samples of different ones are not to be mixed."""

    commit: str
    machine: str
    model: str
    threads: int


class Store:
    """A folder with ``header.json``, ``samples.jsonl``, ``about.json`` and ``memory.json``."""

    def __init__(self, folder: Path, header: Header) -> None:
        """Opens *folder*, or begins it. Raises ValueError if it is of something else."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.header = folder, header
        path = folder / "header.json"
        if path.exists():
            found = msgspec.json.decode(path.read_bytes(), type=Header)
            if found != header:
                raise ValueError(
                    f"{folder} holds samples of {found}, and this run is of {header}. "
                    "Name another folder, or delete that one."
                )
        path.write_bytes(msgspec.json.encode(header))
        self._path = folder / "samples.jsonl"
        self.samples = list(_read(self._path))
        self.about: dict[str, str] = _load(folder / "about.json", dict[str, str])
        self.memory: dict[str, Memory] = _load(folder / "memory.json", dict[str, Memory])

    def add(self, sample: Sample) -> None:
        """Keeps *sample*."""
        self.samples.append(sample)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(sample) + b"\n")

    def note(self, contestant: str, about: str, memory: Memory) -> None:
        """Keeps what is known of a contestant beside its samples; the larger memory peaks."""
        before = self.memory.get(contestant, memory)
        self.about[contestant] = about
        self.memory[contestant] = Memory(
            private_loaded=max(memory.private_loaded, before.private_loaded),
            private_peak=max(memory.private_peak, before.private_peak),
            resident_peak=max(memory.resident_peak, before.resident_peak),
            load_seconds=memory.load_seconds,
        )
        (self.folder / "about.json").write_bytes(msgspec.json.encode(self.about))
        (self.folder / "memory.json").write_bytes(msgspec.json.encode(self.memory))

    def best(self, contestant: str, load: str, repeat: int) -> Sample | None:
        """The least disturbed try of a sample that worked; or else a failed one, or None."""
        tries = [
            s
            for s in self.samples
            if (s.contestant, s.load, s.repeat) == (contestant, load, repeat)
        ]
        return min(tries, key=lambda s: (bool(s.error), s.foreign), default=None)


def _load(path: Path, kind: type) -> dict:  # type: ignore[type-arg]
    return msgspec.json.decode(path.read_bytes(), type=kind) if path.exists() else {}


def _read(path: Path) -> Iterator[Sample]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            yield msgspec.json.decode(line, type=Sample)
        except msgspec.DecodeError:
            continue  # the last line of a run that was killed while it wrote
