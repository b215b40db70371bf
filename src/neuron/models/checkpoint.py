"""A checkpoint's safetensors files, read from their headers alone; no torch.

Owns finding the files, parsing and validating headers, tensor names, and adding up sizes, so that a
load can be refused before any weight is read. Must not know what the tensors mean.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON header
with name → dtype, shape, data_offsets, then the data).
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from neuron.models.errors import LoadCode, LoadError
from protocol.runtime.bounded_files import read_bounded

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 16 << 20
"""Limit on a file's header: every folder that is offered has its headers read, whether or not
anybody loads it. Real ones have 150 bytes for each tensor."""
MAX_TENSORS = 200_000
"""Limit on a checkpoint's tensors; mixtures of hundreds of experts have 100,000."""
MAX_INDEX_BYTES = 32 << 20
MAX_FILES = 4_096

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""The stored dtypes that can be loaded, with their bytes per number."""

WRAPPERS = ("language_model.model.", "language_model.", "model.language_model.", "model.")
"""Possible prefixes of a text model's tensor names, longer ones before their own prefixes."""

_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx")


class TensorEntry(msgspec.Struct, frozen=True):
    """Where one tensor is stored."""

    name: str
    file: Path
    dtype: str
    """The dtype as safetensors spells it: a key of :data:`ITEM_BYTES`."""
    shape: tuple[int, ...]
    begin: int
    """Offset of the tensor's first byte in the file."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * ITEM_BYTES[self.dtype]


def canonical(name: str) -> str:
    """Returns a tensor's name without the modules around the text model.

    Exporters may or may not write ``model.``; models with a vision tower have had their text part
    under ``language_model.model.`` and, since transformers 4.52, under ``model.language_model.``.
    """
    for prefix in WRAPPERS:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def most_common_dtype(entries: Iterable[TensorEntry]) -> str:
    """The stored dtype that accounts for the most bytes."""
    totals: dict[str, int] = {}
    for entry in entries:
        totals[entry.dtype] = totals.get(entry.dtype, 0) + entry.nbytes
    return max(totals, key=totals.__getitem__, default="F32")


class _HeaderEntry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def read_checkpoint(model_dir: Path) -> dict[str, TensorEntry]:
    """Reads all tensors of *model_dir* by name, from one file or from an index with shards.

    Raises :class:`LoadError`: NOT_FOUND for missing files, CORRUPT for damaged or truncated ones,
    UNSUPPORTED for weights in another format or dtype.
    """
    index = model_dir / INDEX
    if not index.exists():
        return _read_headers([_single_file(model_dir)])
    try:
        content = read_bounded(index, MAX_INDEX_BYTES)
        weight_map = msgspec.json.decode(content, type=_Index).weight_map
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _corrupt(index, f"it is not a valid index ({error})") from error
    except RecursionError as error:
        raise _corrupt(index, "it is not a valid index (it is nested too deeply)") from error
    except OSError as error:
        raise _missing(index, error.strerror or str(error)) from error
    names = sorted(set(weight_map.values()))
    _check_number(index, len(weight_map), MAX_TENSORS, "tensors")
    _check_number(index, len(names), MAX_FILES, "files")
    if any(Path(name).name != name for name in names):
        raise _corrupt(index, "it names a file outside its own folder")
    for name in names:
        if not (model_dir / name).exists():
            have = sum((model_dir / other).exists() for other in names)
            raise _missing(
                model_dir / name, f"the index lists {len(names)} shards, but only {have} exist"
            )
    entries = _read_headers(model_dir / name for name in names)
    for tensor, name in weight_map.items():
        if tensor not in entries:
            raise _corrupt(model_dir / name, f"it lacks tensor {tensor!r}, which the index lists")
    return entries


def _single_file(model_dir: Path) -> Path:
    path = model_dir / SINGLE
    if path.exists():
        return path
    found = sorted(model_dir.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise LoadError(
            LoadCode.NOT_FOUND,
            f"{model_dir} has {len(found)} safetensors files but no {INDEX}, so it is unknown "
            "which of them make up the model. Download the model again, with its index.",
        )
    other = [path.name for pattern in _OTHER_FORMATS for path in sorted(model_dir.glob(pattern))]
    if other:
        raise LoadError(
            LoadCode.UNSUPPORTED,
            f"{model_dir} has no safetensors weights, only {other[0]}, and no other format is "
            "supported. Download the model as safetensors, or convert it.",
        )
    raise _missing(path, "the folder has no *.safetensors")


def _read_headers(files: Iterable[Path]) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for entry in read_header(file):
            if entry.name in entries:
                raise _corrupt(
                    file, f"tensor {entry.name!r} is also in {entries[entry.name].file.name}"
                )
            entries[entry.name] = entry
        _check_number(file, len(entries), MAX_TENSORS, "tensors")
    return entries


def _check_number(file: Path, number: int, limit: int, what: str) -> None:
    if number > limit:
        raise LoadError(
            LoadCode.UNSUPPORTED,
            f"{file} cannot be used: with it the model has {number:,} {what}, and at most "
            f"{limit:,} are supported. Use another model.",
        )


def read_header(file: Path) -> list[TensorEntry]:
    """Reads the tensors of one safetensors file. Raises what :func:`read_checkpoint` raises."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < 8:
                raise _corrupt(file, f"it has {size} bytes, and its header alone takes more")
            length = int.from_bytes(stream.read(8), "little")
            if length > size - 8:
                raise _corrupt(file, f"it has {size} bytes, but its header claims {length}")
            _check_number(file, length, MAX_HEADER_BYTES, "bytes of header")
            text = stream.read(length)
    except OSError as error:
        raise _missing(file, error.strerror or "unreadable") from error
    entries = [
        _entry(file, name, raw, 8 + length, size) for name, raw in _decode(file, text).items()
    ]
    end = max((entry.begin + entry.nbytes for entry in entries), default=8 + length)
    if end != size:
        raise _corrupt(file, f"it has {size} bytes, but its header describes {end}")
    return entries


def _decode(file: Path, text: bytes) -> dict[str, _HeaderEntry]:
    try:
        raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        _check_number(file, len(raw), MAX_TENSORS, "tensors")
        return {name: msgspec.json.decode(value, type=_HeaderEntry) for name, value in raw.items()}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _corrupt(file, f"its header cannot be read ({error})") from error
    except RecursionError as error:
        raise _corrupt(file, "its header is nested too deeply") from error


def _entry(file: Path, name: str, raw: _HeaderEntry, base: int, size: int) -> TensorEntry:
    if raw.dtype not in ITEM_BYTES:
        raise LoadError(
            LoadCode.UNSUPPORTED,
            f"{file.name} stores {name!r} as {raw.dtype}, but only {', '.join(ITEM_BYTES)} are "
            "supported. Use the unquantised model.",
        )
    begin, end = raw.data_offsets
    entry = TensorEntry(name, file, raw.dtype, raw.shape, base + begin)
    if min(raw.shape, default=0) < 0 or begin < 0 or end - begin != entry.nbytes:
        raise _corrupt(
            file,
            f"tensor {name!r} of shape {list(raw.shape)} cannot take {end - begin} bytes",
        )
    if base + end > size:
        raise _corrupt(
            file,
            f"it has {size} bytes, but tensor {name!r} ends at byte {base + end}: it was truncated",
        )
    return entry


def _corrupt(file: Path, why: str) -> LoadError:
    return LoadError(LoadCode.CORRUPT, f"{file} is damaged: {why}. Download the model again.")


def _missing(file: Path, why: str) -> LoadError:
    return LoadError(
        LoadCode.NOT_FOUND, f"{file} cannot be read: {why}. Complete the model's folder."
    )
