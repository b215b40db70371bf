"""The host's CPU and memory as far as this process may use them: /proc, within its cgroups.

Knows both versions of cgroups. Must not know GPUs.
"""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")

_BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))


class _CgroupFiles(NamedTuple):
    """The memory files of one cgroup version."""

    limit: str
    usage: str
    reclaimable: str
    """The key in memory.stat for page cache that is reclaimed under pressure."""


_V1 = _CgroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _CgroupFiles("memory.max", "memory.current", "inactive_file")


class Host:
    """The CPU and its memory, as far as this process may use them."""

    def __init__(self, proc: Path = PROC, cgroup: Path = CGROUP) -> None:
        self._proc = proc
        self._cgroup = cgroup

    def cpu_name(self) -> str:
        """For example ``AMD EPYC 9654``; the architecture where Linux names no model (ARM)."""
        fields = _fields(self._proc / "cpuinfo")
        return fields.get("model name") or fields.get("Model") or platform.machine() or "CPU"

    def memory_bytes(self) -> int:
        """Total RAM, or the lowest limit of the cgroups around this process."""
        total = self._meminfo("MemTotal") or _pages("SC_PHYS_PAGES")
        return min([total, *(limit for _, _, limit in self._limits())])

    def memory_free_bytes(self) -> int:
        """Memory that can be taken without swapping or reaching a cgroup's limit."""
        free = self._meminfo("MemAvailable") or _pages("SC_AVPHYS_PAGES")
        return min([free, *(_room(*level) for level in self._limits())])

    def _meminfo(self, key: str) -> int:
        kibibytes = _fields(self._proc / "meminfo").get(key, "").partition(" ")[0]
        return (_decimal(kibibytes) or 0) * 1024

    def _limits(self) -> Iterator[tuple[Path, _CgroupFiles, int]]:
        for folder, files in self._levels():
            limit = _number(folder / files.limit)
            if limit is not None:
                yield folder, files, limit

    def _levels(self) -> Iterator[tuple[Path, _CgroupFiles]]:
        """This process's cgroup and all its parents, as each of them may have a limit.

        Inside a container the path may be the host's and not exist here; the root always does.
        """
        for line in _read(self._proc / "self" / "cgroup").splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if not controllers:
                base, files = self._cgroup, _V2
            elif "memory" in controllers.split(","):
                base, files = self._cgroup / "memory", _V1
            else:
                continue
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for depth in range(len(parts), -1, -1):
                yield base.joinpath(*parts[:depth]), files


def cpu_quota(proc: Path = PROC, cgroup: Path = CGROUP) -> float | None:
    """The cores' worth of time that the cgroups around this process allow it, as ``docker --cpus``
    sets it; None where there is no limit."""
    quotas = []
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = cgroup / "cpu" if controllers else cgroup
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            folder = base.joinpath(*parts[:depth])
            if controllers:
                files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                quota, period = (_number(folder / name) for name in files)
            else:
                quota, period = map(_decimal, (_read(folder / "cpu.max") + "  ").split(" ")[:2])
            if quota and period:
                quotas.append(quota / period)
    return min(quotas, default=None)


def _room(folder: Path, files: _CgroupFiles, limit: int) -> int:
    """Bytes that a cgroup may still take."""
    stat = dict(line.partition(" ")[::2] for line in _read(folder / "memory.stat").splitlines())
    reclaimable = _decimal(stat.get(files.reclaimable, "")) or 0
    used = (_number(folder / files.usage) or 0) - reclaimable
    return max(0, limit - max(0, used))


def _read(path: Path) -> str:
    """A file's text; empty for one that is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    return _decimal(_read(path))


def _decimal(text: str) -> int | None:
    """Parses a decimal; None for anything else, such as cgroups' ``max`` for "no limit"."""
    return int(text) if text.strip().isdecimal() else None


def _fields(path: Path) -> dict[str, str]:
    """Parses ``key : value`` lines; the first line of each key counts."""
    fields: dict[str, str] = {}
    for line in _read(path).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _pages(name: str) -> int:
    """Memory in bytes by sysconf, for systems without /proc; 0 where unknown."""
    try:
        return max(0, os.sysconf(name) * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        return 0


class ProcessTime(NamedTuple):
    """How much a process has worked."""

    cpu_seconds: float
    """Processor time of all its threads, in steps of 10 ms."""
    is_stopped: bool
    """Whether somebody has stopped it with a signal."""


def process_time(pid: int, proc: Path = PROC) -> ProcessTime | None:
    """How much a process has worked; None where the system does not say."""
    fields = _read(proc / str(pid) / "stat").rpartition(")")[2].split()
    try:
        ticks = int(fields[11]) + int(fields[12])
        return ProcessTime(ticks / os.sysconf("SC_CLK_TCK"), fields[0] in ("T", "t"))
    except (IndexError, ValueError, OSError):
        return None


def written_bytes(pid: int, proc: Path = PROC) -> int:
    """Memory that a process has written, or shares with the process that it was forked from: in RAM
    or swapped out, in bytes.

    0 when there is no process with this id. Pages that it only reads from files do not count: they
    are page cache, which is reclaimed when others need it.
    """
    return _rollup(pid, proc, "Private_Dirty", "Shared_Dirty", "Swap")


def shared_out_bytes(pid: int, proc: Path = PROC) -> int:
    """Like :func:`written_bytes`, but of what several processes share, each has its part: the sum
    over all of them is what they take of the host."""
    found = _rollup(pid, proc, "Pss_Anon", "Pss_Shmem", "SwapPss")
    return found or written_bytes(pid, proc)  # kernels before 5.4 do not say


def _rollup(pid: int, proc: Path, *keys: str) -> int:
    if not pid:
        return 0
    fields = _fields(proc / str(pid) / "smaps_rollup")
    sizes = (fields.get(key, "").partition(" ")[0] for key in keys)
    return sum((_decimal(text) or 0) * 1024 for text in sizes)


def cpu_flags(cpuinfo: Path = PROC / "cpuinfo") -> list[str]:
    """The instruction set flags of the first CPU; empty where the system does not list them."""
    fields = _fields(cpuinfo)
    return (fields.get("flags") or fields.get("Features") or "").split()


def cpu_model(cpuinfo: Path = PROC / "cpuinfo") -> str:
    """The name of the first CPU; empty where the system does not say."""
    fields = _fields(cpuinfo)
    keys = ("model name", "stepping", "microcode", "CPU implementer", "CPU part", "CPU revision")
    return " ".join(fields[key] for key in keys if key in fields)


def computes_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions instead of only emulating them."""
    return bool(_BF16_FLAGS & set(cpu_flags()))
