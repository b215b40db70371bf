"""Model folders in which one file is not what it should be: every file × every damage."""

import json
import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.tiny_models import write_checkpoint

GIB = 1 << 30
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


class Hostile(NamedTuple):
    """A folder to be made."""

    name: str
    file: str
    damage: Callable[[Path], object]

    def make(self, folder: Path) -> Path:
        """Writes a good model, and damages the file."""
        write_checkpoint(folder, shards=2)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 256}))
        self.damage(folder / self.file)
        return folder


def _instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else in a file's place."""

    def damage(file: Path) -> None:
        file.unlink()
        make(file)

    return damage


def _changed(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A file's content changed."""
    return lambda file: (file.write_bytes(change(file.read_bytes())), None)[1]


def _socket(file: Path) -> None:
    there = os.getcwd()
    os.chdir(file.parent)  # the whole path may be too long for an address
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(file.name)
    finally:
        os.chdir(there)


def _sparse(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(50 * GIB)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "nothing in it": _changed(lambda _: b""),
    "its first half": _changed(lambda data: data[: len(data) // 2]),
    "all but its last byte": _changed(lambda data: data[:-1]),
    "one byte more": _changed(lambda data: data + b"\0"),
    "itself twice": _changed(lambda data: 2 * data),
    "noise": _changed(lambda data: random.Random(len(data)).randbytes(len(data))),
    "zeros": _changed(lambda data: bytes(len(data))),
    "huge numbers": _changed(lambda data: b"\xff" * len(data)),
    "UTF-16": _changed(lambda data: data[:4096].decode("latin-1").encode("utf-16")),
    "a list": _changed(lambda _: b"[]"),
    "null": _changed(lambda _: b"null"),
    "a deep object": _changed(lambda _: b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a deep list": _changed(lambda _: b"[" * 1_000_000),
    "a million keys": _changed(
        lambda _: b'{"a":0' + b"".join(b',"k%d":0' % n for n in range(1_000_000)) + b"}"
    ),
    "a long text": _changed(lambda _: json.dumps({"chat_template": "x" * 30_000_000}).encode()),
    "50 GiB of nothing": _sparse,
    "a pipe": _instead(os.mkfifo),
    "a socket": _instead(_socket),
    "a folder": _instead(lambda file: file.mkdir()),
    "a link to itself": _instead(lambda file: file.symlink_to(file.name)),
    "a link to nowhere": _instead(lambda file: file.symlink_to("nowhere")),
    "a link to its folder": _instead(lambda file: file.symlink_to(".")),
    "endless zeros": _instead(lambda file: file.symlink_to("/dev/zero")),
    "endless noise": _instead(lambda file: file.symlink_to("/dev/urandom")),
    "a terminal": _instead(lambda file: file.symlink_to("/dev/tty")),
    "another model's": _instead(lambda file: shutil.copy(file.parent / "config.json", file)),
}
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
)


def hostile_folders() -> Iterator[Hostile]:
    """All of them."""
    for file in FILES:
        for what, damage in DAMAGES.items():
            if (file, what) != ("config.json", "another model's"):
                yield Hostile(f"{file}: {what}", file, damage)
