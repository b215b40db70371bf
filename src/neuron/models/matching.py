"""Whether a checkpoint's tensors are those that a model reads, by name and shape; no torch.

Must not know architectures, nor where a tensor goes once it is read.
"""

from collections.abc import Callable, Iterable, Mapping

from neuron.models.checkpoint import TensorEntry, canonical
from neuron.models.errors import LoadCode, LoadError

_NAMED = 3
"""Names of tensors that an error lists before it stops."""


def match_tensors(
    entries: Iterable[TensorEntry],
    shapes: Mapping[str, tuple[int, ...]],
    ignored: Callable[[str], bool],
) -> dict[str, TensorEntry]:
    """Finds the tensor of the checkpoint for every name in *shapes*, in the order of *shapes*.

    Names are compared in ``canonical`` form; *ignored* tells which tensors of a checkpoint
    may be left alone. Raises :class:`LoadError` CORRUPT for missing, doubled or unexpected tensors
    and for wrong shapes.
    """
    found = _by_name(entries)
    missing = sorted(shapes.keys() - found.keys())
    unexpected = sorted(name for name in found.keys() - shapes.keys() if not ignored(name))
    if missing or unexpected:
        faults = [
            f"{word} {len(names)} tensor{'s' * (len(names) > 1)} ({_some(names)})"
            for word, names in (("lacks", missing), ("has unexpected", unexpected))
            if names
        ]
        raise LoadError(
            LoadCode.CORRUPT,
            f"The weights do not match config.json: the checkpoint {' and '.join(faults)}. "
            "Check that config.json belongs to these weights, or download the model again.",
        )
    matched = {name: found[name] for name in shapes}
    for name, entry in matched.items():
        if entry.shape != shapes[name]:
            raise LoadError(
                LoadCode.CORRUPT,
                f"The weights do not match config.json: tensor {entry.name!r} has shape "
                f"{list(entry.shape)} instead of {list(shapes[name])}. Check that config.json "
                "belongs to these weights, or download the model again.",
            )
    return matched


def _by_name(entries: Iterable[TensorEntry]) -> dict[str, TensorEntry]:
    found: dict[str, TensorEntry] = {}
    for entry in entries:
        other = found.setdefault(canonical(entry.name), entry)
        if other is not entry:
            raise LoadError(
                LoadCode.CORRUPT,
                f"The checkpoint has one tensor twice, as {other.name!r} and {entry.name!r}. "
                "Download the model again into an empty folder.",
            )
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
