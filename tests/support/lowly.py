"""A process without privileges over memory and files, although it may be root's."""

import ctypes
import resource

_VERSION_3 = 0x20080522
_DAC_OVERRIDE, _DAC_READ_SEARCH, _IPC_LOCK = 1, 2, 14


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def become_lowly(limit_bytes: int) -> None:
    """Lowers RLIMIT_MEMLOCK, and drops what would exempt this process from it or from modes."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard != resource.RLIM_INFINITY:
        limit_bytes = min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit_bytes, limit_bytes))
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    assert libc.capget(ctypes.byref(header), data) == 0
    for capability in (_DAC_OVERRIDE, _DAC_READ_SEARCH, _IPC_LOCK):
        data[0].effective &= ~(1 << capability)
    assert libc.capset(ctypes.byref(header), data) == 0
