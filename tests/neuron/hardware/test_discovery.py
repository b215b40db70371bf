"""Discovery: GPUs as NVML and CUDA count them, the CPU as cgroups let it be used."""

import ctypes
import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest

from neuron.hardware.discovery import Hardware
from protocol.fleet import Device, DeviceKind, DeviceUsage

GIB = 1 << 30
UUIDS = ("GPU-aaaa1111", "GPU-aabb2222", "GPU-cccc3333")


class Memory(ctypes.Structure):
    """As the binding hands it out: integers in a C structure."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong))


class Rates(ctypes.Structure):
    """Percent."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class FakeNvml:
    """Three cards behind the binding's own names; *broken* maps (function, card) to an error."""

    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU
    NVML_ERROR_NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED
    NVML_ERROR_LIBRARY_NOT_FOUND = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND

    def __init__(self, *, encode: Callable[[str], Any] = str) -> None:
        self.broken: dict[tuple[str, int | None], Exception] = {}
        self.running = False
        self._encode = encode

    def _call(self, function: str, card: object = None) -> int:
        if function != "nvmlInit" and not self.running:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        number = card if isinstance(card, int) else None
        for key in ((function, number), ("*", number)):
            if key in self.broken:
                raise self.broken[key]
        return number or 0

    def nvmlInit(self) -> None:
        self._call("nvmlInit")
        self.running = True

    def nvmlShutdown(self) -> None:
        self._call("nvmlShutdown")
        self.running = False

    def nvmlSystemGetDriverVersion(self) -> Any:
        self._call("nvmlSystemGetDriverVersion")
        return self._encode("580.65.06")

    def nvmlDeviceGetCount(self) -> int:
        self._call("nvmlDeviceGetCount")
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:
        return self._call("nvmlDeviceGetHandleByIndex", index)

    def nvmlDeviceGetName(self, handle: object) -> Any:
        return self._encode(f"NVIDIA Card {self._call('nvmlDeviceGetName', handle)}")

    def nvmlDeviceGetUUID(self, handle: object) -> Any:
        return self._encode(UUIDS[self._call("nvmlDeviceGetUUID", handle)])

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> Memory:
        number = self._call("nvmlDeviceGetMemoryInfo", handle)
        return Memory(total=(number + 1) * 24 * GIB, free=(number + 1) * 20 * GIB)

    def nvmlDeviceGetCudaComputeCapability(self, handle: object) -> tuple[int, int]:
        self._call("nvmlDeviceGetCudaComputeCapability", handle)
        return (8, 9)

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> Rates:
        self._call("nvmlDeviceGetUtilizationRates", handle)
        return Rates(gpu=73, memory=20)

    def nvmlDeviceGetTemperature(self, handle: object, sensor: int) -> int:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        self._call("nvmlDeviceGetTemperature", handle)
        return 61

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:
        self._call("nvmlDeviceGetPowerUsage", handle)
        return 187_500


def error(name: str) -> Exception:
    """The binding's own exception, such as ``NVMLError_GpuIsLost``."""
    made: Exception = pynvml.NVMLError(getattr(pynvml, f"NVML_ERROR_{name}"))
    return made


def uuids(visible_devices: str | None) -> list[str]:
    devices = Hardware(visible_devices=visible_devices, nvml=FakeNvml()).discover()
    assert [d.index for d in devices[:-1]] == list(range(len(devices) - 1))
    return [d.uuid for d in devices[:-1]]


def test_the_fake_has_only_what_the_binding_has() -> None:
    names = [name for name in dir(FakeNvml) if name.lower().startswith("nvml")]
    assert len(names) >= 15
    for name in names:
        theirs, ours = getattr(pynvml, name), getattr(FakeNvml, name)
        assert callable(theirs) == callable(ours)
        if callable(theirs):
            code = inspect.unwrap(theirs).__code__
            optional = len(inspect.unwrap(theirs).__defaults__ or ())
            given = ours.__code__.co_argcount - 1
            assert code.co_argcount - optional <= given <= code.co_argcount
    assert {"total", "free"} <= {name for name, _ in pynvml.c_nvmlMemory_t._fields_}
    assert "gpu" in {name for name, _ in pynvml.c_nvmlUtilization_t._fields_}


@pytest.mark.parametrize("encode", [str, str.encode])
def test_gpus_come_first_and_the_cpu_last(encode: Callable[[str], Any]) -> None:
    devices = Hardware(visible_devices=None, nvml=FakeNvml(encode=encode)).discover()
    assert [d.kind for d in devices] == [DeviceKind.CUDA] * 3 + [DeviceKind.CPU]
    assert devices[1] == Device(
        kind=DeviceKind.CUDA,
        index=1,
        name="NVIDIA Card 1",
        memory_bytes=48 * GIB,
        uuid="GPU-aabb2222",
        compute_capability="8.9",
        driver="580.65.06",
    )


@pytest.mark.parametrize(
    ("visible_devices", "cards"),
    [
        (None, (0, 1, 2)),
        ("", ()),
        (" ", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("0,1,2", (0, 1, 2)),
        ("2,0", (2, 0)),
        (" 2 , +1x", (2, 1)),
        ("0,7,1", (0,)),
        ("1,-1,2", (1,)),
        ("0,,2", (0,)),
        ("1,1", ()),
        ("GPU-cccc,GPU-aaaa1111", (2, 0)),
        ("GPU-aa", ()),  # fits two
        ("GPU-cccc,GPU-ffff,GPU-aaaa", (2,)),
        ("GPU-cccc,0", (2,)),
        ("0,GPU-cccc", (0,)),
        ("MIG-aaaa", ()),
    ],
)
def test_visible_devices_are_read_as_cuda_does(
    visible_devices: str | None, cards: tuple[int, ...]
) -> None:
    assert uuids(visible_devices) == [UUIDS[card] for card in cards]


def test_a_mistaken_entry_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    hardware = Hardware(visible_devices="0,7", nvml=FakeNvml())
    hardware.discover()
    hardware.discover()
    problem = "'7' matches none of 3 GPUs, so CUDA ignores it and all after it"
    assert caplog.messages == [f"CUDA_VISIBLE_DEVICES: {problem}"]


def test_without_visible_gpus_the_driver_is_left_alone() -> None:
    nvml = FakeNvml()
    Hardware(visible_devices="", nvml=nvml).discover()
    assert not nvml.running


def test_usage_of_a_gpu() -> None:
    hardware = Hardware(visible_devices="2", nvml=FakeNvml())
    assert hardware.usage(hardware.discover())[0] == DeviceUsage(
        kind=DeviceKind.CUDA,
        index=0,
        memory_free_bytes=60 * GIB,
        utilisation_percent=73,
        temperature_celsius=61,
        power_watts=187.5,
    )


def test_what_a_card_does_not_tell_is_none(caplog: pytest.LogCaptureFixture) -> None:
    nvml = FakeNvml()
    for function in ("UtilizationRates", "Temperature", "PowerUsage", "Name"):
        nvml.broken[f"nvmlDeviceGet{function}", 0] = error("NOT_SUPPORTED")
    nvml.broken["nvmlDeviceGetCudaComputeCapability", 0] = error("FUNCTION_NOT_FOUND")
    nvml.broken["nvmlSystemGetDriverVersion", None] = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "")
    hardware = Hardware(visible_devices="0", nvml=nvml)
    devices = hardware.discover()
    assert devices[0] == Device(DeviceKind.CUDA, 0, "NVIDIA GPU", 24 * GIB, uuid=UUIDS[0])
    assert hardware.usage(devices)[0] == DeviceUsage(DeviceKind.CUDA, 0, 20 * GIB)
    assert caplog.messages == []


def test_a_gpu_without_its_own_memory_has_the_hosts(tmp_path: Path) -> None:
    proc = write_proc(tmp_path, total_kib=64 << 20, available_kib=50 << 20)
    nvml = FakeNvml()
    nvml.broken["nvmlDeviceGetMemoryInfo", 0] = error("NOT_SUPPORTED")
    hardware = Hardware(visible_devices="0", nvml=nvml, proc=proc, cgroup=tmp_path / "none")
    devices = hardware.discover()
    assert devices[0].memory_bytes == 64 * GIB
    assert hardware.usage(devices)[0].memory_free_bytes == 50 * GIB


def test_a_card_that_falls_off_has_nothing_free_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    nvml = FakeNvml()
    hardware = Hardware(visible_devices=None, nvml=nvml)
    devices = hardware.discover()
    nvml.broken["*", 1] = error("GPU_IS_LOST")
    for _ in range(3):
        usage = hardware.usage(devices)
    assert usage[1] == DeviceUsage(DeviceKind.CUDA, 1, 0)
    assert usage[2].memory_free_bytes == 60 * GIB
    assert caplog.messages == ["cuda:1 (NVIDIA Card 1) does not answer: GPU is lost"]
    nvml.broken.clear()
    assert hardware.usage(devices)[1].memory_free_bytes == 40 * GIB
    assert caplog.messages[1:] == ["cuda:1 answers again"]


def test_a_card_that_is_lost_at_the_start_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    nvml = FakeNvml()
    nvml.broken["nvmlDeviceGetHandleByIndex", 0] = error("GPU_IS_LOST")
    hardware = Hardware(visible_devices=None, nvml=nvml)
    hardware.discover()
    assert [(d.index, d.uuid) for d in hardware.discover()[:-1]] == [(0, UUIDS[1]), (1, UUIDS[2])]
    assert caplog.messages == ["GPU 0 of NVML does not answer and is not used: GPU is lost"]


@pytest.mark.parametrize(
    ("failure", "level"),
    [
        (error("LIBRARY_NOT_FOUND"), logging.INFO),  # an ordinary CPU machine
        (error("LIB_RM_VERSION_MISMATCH"), logging.WARNING),
        (OSError("no such symbol"), logging.WARNING),
    ],
)
def test_without_a_working_driver_there_is_the_cpu(
    failure: Exception, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    nvml = FakeNvml()
    nvml.broken["nvmlInit", None] = failure
    hardware = Hardware(visible_devices=None, nvml=nvml)
    for _ in range(2):
        devices = hardware.discover()
    assert [d.kind for d in devices] == [DeviceKind.CPU]
    assert len(hardware.usage(devices)) == 1
    hardware.close()
    assert [record.levelno for record in caplog.records] == [level]
    assert str(failure) in caplog.text


def test_without_the_binding_there_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    hardware = Hardware(visible_devices=None)
    assert [d.kind for d in hardware.discover()] == [DeviceKind.CPU]


def test_a_driver_that_breaks_later_costs_only_the_gpus() -> None:
    nvml = FakeNvml()
    hardware = Hardware(visible_devices=None, nvml=nvml)
    devices = hardware.discover()
    nvml.running = False
    usage = hardware.usage(devices)
    assert [u.memory_free_bytes for u in usage[:-1]] == [0, 0, 0]
    assert usage[-1].memory_free_bytes > 0
    assert len(hardware.discover()) == 1


def test_close_ends_nvml_and_may_come_twice() -> None:
    nvml = FakeNvml()
    hardware = Hardware(visible_devices=None, nvml=nvml)
    devices = hardware.discover()
    hardware.close()
    hardware.close()
    assert not nvml.running
    assert hardware.usage(devices)[0].memory_free_bytes == 0


# -- the CPU -----------------------------------------------------------------------------------


def write_proc(
    folder: Path,
    *,
    cgroup: str = "0::/\n",
    total_kib: int = 16 << 20,
    available_kib: int = 9 << 20,
) -> Path:
    """A /proc."""
    proc = folder / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(cgroup)
    (proc / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU\nmodel name\t: B\n")
    (proc / "meminfo").write_text(
        f"MemTotal:       {total_kib} kB\nMemFree: 5 kB\nMemAvailable:   {available_kib} kB\n"
    )
    return proc


def write_cgroup(folder: Path, **files: object) -> None:
    """*files*: ``memory_max`` is memory.max, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("memory_", "memory.")).write_text(f"{value}\n")


def cpu(folder: Path) -> tuple[Device, DeviceUsage]:
    hardware = Hardware(visible_devices="", proc=folder / "proc", cgroup=folder / "cgroup")
    devices = hardware.discover()
    return devices[-1], hardware.usage(devices)[-1]


def test_the_cpu_by_name_with_all_memory(tmp_path: Path) -> None:
    write_proc(tmp_path)
    device, usage = cpu(tmp_path)
    assert device == Device(DeviceKind.CPU, 0, "Some CPU", 16 * GIB)
    assert usage == DeviceUsage(DeviceKind.CPU, 0, 9 * GIB)


def test_the_real_machine_answers() -> None:
    hardware = Hardware(visible_devices="")
    (device,) = hardware.discover()
    (usage,) = hardware.usage([device])
    assert 0 < usage.memory_free_bytes <= device.memory_bytes
    assert device.name


def test_without_proc_nothing_is_raised(tmp_path: Path) -> None:
    device, usage = cpu(tmp_path)
    assert device.name
    assert usage.memory_free_bytes >= 0


def test_the_lowest_limit_of_a_v2_hierarchy_holds(tmp_path: Path) -> None:
    write_proc(tmp_path, cgroup="0::/system.slice/neuron.service\n")
    root = tmp_path / "cgroup"
    write_cgroup(root / "system.slice", memory_max=8 * GIB, memory_current=7 * GIB)
    write_cgroup(root / "system.slice/neuron.service", memory_max="max", memory_current=2 * GIB)
    device, usage = cpu(tmp_path)
    assert device.memory_bytes == 8 * GIB
    assert usage.memory_free_bytes == 1 * GIB


def test_page_cache_that_nobody_uses_is_room(tmp_path: Path) -> None:
    write_proc(tmp_path)
    stat = f"anon {2 * GIB}\ninactive_file {3 * GIB}\nodd\nactive_file 4096"
    write_cgroup(tmp_path / "cgroup", memory_max=8 * GIB, memory_current=7 * GIB, memory_stat=stat)
    assert cpu(tmp_path)[1].memory_free_bytes == 4 * GIB


def test_a_cgroup_over_its_limit_has_no_room(tmp_path: Path) -> None:
    write_proc(tmp_path)
    write_cgroup(tmp_path / "cgroup", memory_max=GIB, memory_current=2 * GIB)
    assert cpu(tmp_path)[1].memory_free_bytes == 0


@pytest.mark.parametrize("path", ["/docker/0123", "/../../other", "/"])
def test_v1_and_a_path_that_exists_only_on_the_host(tmp_path: Path, path: str) -> None:
    write_proc(tmp_path, cgroup=f"5:cpu,cpuacct:/x\n4:memory:{path}\n0::/\nodd line\n")
    write_cgroup(
        tmp_path / "cgroup" / "memory",
        memory_limit_in_bytes=4 * GIB,
        memory_usage_in_bytes=2 * GIB,
        memory_stat=f"inactive_file 0\ntotal_inactive_file {GIB}",
    )
    device, usage = cpu(tmp_path)
    assert device.memory_bytes == 4 * GIB
    assert usage.memory_free_bytes == 3 * GIB


def test_v1_without_a_limit_is_a_huge_number(tmp_path: Path) -> None:
    write_proc(tmp_path, cgroup="4:memory:/\n")
    write_cgroup(
        tmp_path / "cgroup" / "memory",
        memory_limit_in_bytes=9223372036854771712,
        memory_usage_in_bytes=GIB,
    )
    device, usage = cpu(tmp_path)
    assert device.memory_bytes == 16 * GIB
    assert usage.memory_free_bytes == 9 * GIB
