"""Keeps what engines have found out about this machine's kernels, over loads and restarts.

Owns the file, which all neurons of a user share. It is a convenience: without it, or with a damaged
one, each first load of a model tries its kernels anew. A finding is trusted for
:data:`TRUSTED_SECONDS`; one that was wrong (measured while the machine was busy, say) does not stay
for ever. Must not know what findings mean.
"""

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from neuron.ipc.messages import Findings

log = logging.getLogger("neuron")

TRUSTED_SECONDS = 7 * 24 * 3600.0
KEPT = 64
"""Findings that are kept, the latest ones."""


class _Entry(msgspec.Struct, frozen=True):
    found_at: float
    """Unix time."""
    findings: Findings


class KernelFindings:
    """What has been found, by key."""

    def __init__(self, path: Path | None) -> None:
        """*path* None: only for as long as this process runs."""
        self._path = path
        self._entries = self._read()

    def known(self) -> dict[str, Findings]:
        """What later engines may rely on."""
        now = time.time()
        return {
            key: entry.findings
            for key, entry in self._entries.items()
            if 0 <= now - entry.found_at < TRUSTED_SECONDS
        }

    def learn(self, found: Mapping[str, Findings]) -> None:
        """Keeps what an engine relies on, if that is new; writes the file, so call it in a
        thread."""
        known = self.known()
        new = {key: value for key, value in found.items() if known.get(key) != value}
        if not new:
            return
        now = time.time()
        entries = {**self._read(), **self._entries}
        entries |= {key: _Entry(now, findings) for key, findings in new.items()}
        latest = sorted(entries.items(), key=lambda item: item[1].found_at)[-KEPT:]
        self._entries = dict(latest)
        self._write()

    def _read(self) -> dict[str, _Entry]:
        if self._path is None:
            return {}
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, _Entry])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            log.warning("%s is not used: %s", self._path, error)
            return {}

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(msgspec.json.encode(self._entries))
                Path(name).replace(self._path)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(name).unlink()
                raise
        except OSError as error:
            log.warning("what kernels were found to do is forgotten at the next start: %s", error)
            self._path = None
