"""The books of a node: what is reserved, what others take, and where a model fits."""

from neuron.sizing.ledger import Ledger, with_budgets
from protocol.fleet import Device, DeviceKind

GIB = 1 << 30
CPU = Device(DeviceKind.CPU, 0, "CPU", 32 * GIB)
SMALL = Device(DeviceKind.CUDA, 0, "small", 16 * GIB)
LARGE = Device(DeviceKind.CUDA, 1, "large", 80 * GIB)


def budgets(*devices: Device, wanted: str = "auto", mb: int = 0, cache: int = 0) -> list[int]:
    found = with_budgets(devices, wanted, mb, 0.5, cache)
    return [device.budget_bytes // GIB for device in found]


def test_who_may_have_models() -> None:
    assert budgets(SMALL, LARGE, CPU) == [8, 40, 0], "GPUs, where there are any"
    assert budgets(CPU) == [16]
    assert budgets(SMALL, LARGE, CPU, wanted="cuda:1") == [0, 40, 0]
    assert budgets(SMALL, LARGE, CPU, wanted="cpu") == [0, 0, 16]
    assert budgets(SMALL, LARGE, CPU, mb=20 << 10) == [16, 20, 0], "no more than there is"
    assert budgets(CPU, mb=32 << 10, cache=4 * GIB) == [28], "what is locked is not theirs"


def ledger(*gib: int) -> Ledger:
    return Ledger(
        [
            Device(DeviceKind.CUDA, i, "GPU", size * GIB, budget_bytes=size * GIB)
            for i, size in enumerate(gib)
        ]
    )


def test_a_model_goes_where_it_leaves_least() -> None:
    books = ledger(80, 16, 24)
    assert books.choose(1, 10 * GIB) == (1,)
    assert books.choose(1, 20 * GIB) == (2,)
    assert books.choose(2, 20 * GIB) == (0, 2)
    assert books.choose(1, 81 * GIB) == ()
    assert books.choose(4, GIB) == ()


def test_what_is_reserved_is_not_to_be_had_until_it_is_released() -> None:
    books = ledger(16)
    books.reserve("a", (0,), 10 * GIB)
    assert books.room(0) == 6 * GIB
    assert not books.fits((0,), 7 * GIB)
    assert books.choose(1, 7 * GIB) == ()
    books.release("a")
    assert books.choose(1, 16 * GIB) == (0,)


def test_devices_that_are_not_there_have_no_room() -> None:
    assert not ledger(8, 8).fits((0, 2), 1)
    assert not ledger(8, 8).fits((-1,), 1)


def test_what_others_take_counts() -> None:
    books = ledger(16)
    books.others_take([12 * GIB])
    assert books.choose(1, 5 * GIB) == ()
    books.reserve("a", (0,), 4 * GIB)
    books.others_take([14 * GIB])
    assert books.room(0) < 0, "they came while it was loaded"
    assert books.choose(1, 0) == ()


def test_a_budget_leaves_the_rest_to_others() -> None:
    device = Device(DeviceKind.CPU, 0, "CPU", 32 * GIB, budget_bytes=8 * GIB)
    books = Ledger([device])
    books.others_take([20 * GIB])
    assert books.room(0) == 8 * GIB
    books.others_take([28 * GIB])
    assert books.room(0) == 4 * GIB
    assert books.name(0) == "cpu"
