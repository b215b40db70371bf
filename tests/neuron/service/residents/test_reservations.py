"""The memory of a node's residents: who gets it, who goes for whom, and that nothing leaks."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest

from neuron.config import NeuronConfig
from neuron.files.warm_tier import WarmTier
from neuron.service.residents.memory_meter import Measured
from neuron.service.residents.offers import Offer, Offers
from neuron.service.residents.reservations import NoRoom, Reservation, Reservations
from neuron.sizing.ledger import Ledger
from protocol.catalogue import Profile
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.fleet import Device, DeviceKind, DeviceUsage
from protocol.leader import Epoch
from protocol.orders import LoadOrder, Victim
from tests.support.waiting import until

GIB = 1 << 30
DEVICE_GIB = 10


class ScriptedMeter:
    """Devices on which others take what a test says."""

    def __init__(self, devices: int) -> None:
        device = Device(DeviceKind.CUDA, 0, "GPU", DEVICE_GIB * GIB, budget_bytes=DEVICE_GIB * GIB)
        self.devices = (device,) * devices
        self.others_gib = 0
        self.engine_bytes: dict[str, int] = {}
        self.pids: dict[str, tuple[int, ...]] = {}
        self.is_measuring = False
        self.may_return = threading.Event()
        self.may_return.set()

    async def measure(self, ledger: Ledger, pids: Mapping[str, tuple[int, ...]]) -> Measured:
        self.is_measuring = True
        assert await asyncio.to_thread(self.may_return.wait, 10)
        self.is_measuring = False
        self.pids = dict(pids)
        usage = DeviceUsage(DeviceKind.CUDA, 0, 0, others_bytes=self.others_gib * GIB)
        return Measured((usage,) * len(self.devices), self.engine_bytes)


class SlowOffers(Offers):
    """The real offers, which a test can make slow or break."""

    is_appraising = False
    error: WireError | None = None
    measured: tuple[tuple[str, int], ...] = ()

    def __init__(self, meter: ScriptedMeter) -> None:
        super().__init__(NeuronConfig(name="n1", default_models=()), meter.devices)
        self.may_return = asyncio.Event()
        self.may_return.set()

    async def appraise(self, model: str) -> Offer:
        self.is_appraising = True
        await self.may_return.wait()
        self.is_appraising = False
        return (await super().appraise(model))._replace(error=self.error)

    def record_bytes(self, model: str, nbytes: int) -> None:
        self.measured += ((model, nbytes),)


class World:
    """Reservations, and tasks that hold them as residents do."""

    def __init__(self, devices: int = 1) -> None:
        self.meter = ScriptedMeter(devices)
        self.offers = SlowOffers(self.meter)
        self.reservations = Reservations("n1", self.offers, self.meter, WarmTier(0), self._evict)
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.granted: dict[str, Reservation] = {}
        self.evicted: list[str] = []
        self.told: list[tuple[int, int]] = []
        self.on_eviction: Callable[[], None] = lambda: None
        self.may_leave = asyncio.Event()
        self.may_leave.set()

    @property
    def held_gib(self) -> dict[str, int]:
        """What each model holds."""
        held = self.reservations.all_held()
        assert set(held) == set(self.reservations._granted)
        return {model: memory.bytes_each // GIB for model, memory in held.items()}

    def begin(
        self, model: str, gib: int, *victims: str, epoch: Epoch | None = None
    ) -> asyncio.Task[None]:
        """Begins to load a model of this size, which then stays until cancelled."""
        self.offers.add(model, f"lab/{model}", Profile(model, vram_mb=gib << 10))
        order = LoadOrder(model, victims=tuple(map(Victim, victims)), epoch=epoch)
        self.tasks[model] = asyncio.create_task(self._stay(order))
        return self.tasks[model]

    async def load(self, model: str, gib: int, *victims: str) -> None:
        """Returns when the model has its memory; raises what its load raises."""
        task = self.begin(model, gib, *victims)
        await until(lambda: model in self.granted or task.done())
        if task.done():
            await task

    async def _stay(self, order: LoadOrder) -> None:
        told = lambda gone, total: self.told.append((gone, total))  # noqa: E731
        async with self.reservations.reserve(order, told) as reservation:
            self.granted[order.model] = reservation
            try:
                await asyncio.Event().wait()
            finally:
                del self.granted[order.model]

    async def _evict(self, victim: Victim, successor: str) -> None:
        self.evicted.append(victim.model)
        await self.may_leave.wait()
        await ended(self.tasks[victim.model])
        self.on_eviction()


async def ended(task: asyncio.Task[None]) -> None:
    """Cancels a resident's task and returns when it has released its memory."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, FleetError):
        await task


async def refused(task: asyncio.Task[None]) -> NoRoom:
    """Returns what a load raises that finds no room."""
    with pytest.raises(NoRoom) as caught:
        await asyncio.wait_for(task, timeout=5)
    return caught.value


@pytest.fixture
def world() -> World:
    return World()


# -- victims ---------------------------------------------------------------------------------------


async def three_residents(world: World) -> None:
    for model, gib in (("a", 4), ("b", 3), ("c", 3)):
        await world.load(model, gib)


async def test_victims_go_only_until_it_fits(world: World) -> None:
    await three_residents(world)
    await world.load("d", 6, "a", "b", "c")
    assert world.evicted == ["a", "b"]
    assert world.told == [(0, 3), (1, 3)]
    assert world.held_gib == {"c": 3, "d": 6}


async def test_nobody_goes_where_it_fits_already(world: World) -> None:
    await world.load("a", 4)
    await world.load("d", 6, "a")
    assert (world.evicted, world.told) == ([], [])


async def test_what_is_measured_decides_not_what_was_planned(world: World) -> None:
    await three_residents(world)
    world.meter.others_gib = 2

    def others_leave() -> None:
        world.meter.others_gib = 0

    world.on_eviction = others_leave
    await world.load("d", 4, "a", "b", "c")
    assert world.evicted == ["a"]


async def test_more_go_when_others_have_come(world: World) -> None:
    await three_residents(world)
    world.meter.others_gib = 1
    await world.load("d", 4, "a", "b", "c")
    assert world.evicted == ["a", "b"]


async def test_a_model_is_not_its_own_victim(world: World) -> None:
    await world.load("a", 8)
    with pytest.raises(NoRoom):
        await world.load("d", 6, "d")
    assert (world.evicted, world.told) == ([], [])


async def test_when_all_victims_together_are_not_enough(world: World) -> None:
    await three_residents(world)
    with pytest.raises(NoRoom) as caught:
        await world.load("d", 9, "b")
    assert world.evicted == ["b"]
    assert world.held_gib == {"a": 4, "c": 3}
    assert "d takes 9 GiB on n1, and 3 GiB are free (a 4 GiB, c 3 GiB)" in str(caught.value)


@pytest.mark.parametrize(("epoch", "is_shown"), [(None, True), (Epoch("b", 1), False)])
async def test_an_operator_is_told_of_missing_room(
    world: World, epoch: Epoch | None, is_shown: bool
) -> None:
    error = await refused(world.begin("d", 11, epoch=epoch))
    assert error.is_shown is is_shown


# -- what fails gives everything back --------------------------------------------------------------


async def test_a_load_that_fails_gives_everything_back(world: World) -> None:
    world.offers.add("a", "lab/a", Profile("a", vram_mb=6 << 10))

    async def load_that_fails() -> None:
        async with world.reservations.reserve(LoadOrder("a"), lambda gone, total: None):
            assert world.held_gib == {"a": 6}
            raise RuntimeError("its file is damaged")

    with pytest.raises(RuntimeError):
        await load_that_fails()
    assert world.held_gib == {}
    await world.load("b", DEVICE_GIB)


async def test_a_model_that_cannot_be_loaded_takes_nobody_down(world: World) -> None:
    await world.load("a", 8)
    world.offers.error = WireError(ErrorCode.MODEL_UNAVAILABLE, "config.json is missing")
    with pytest.raises(FleetError, match=r"config\.json is missing"):
        await world.load("d", 6, "a")
    assert (world.evicted, world.held_gib) == ([], {"a": 8})
    world.offers.error = None
    await world.load("e", 2)


# -- two at once -----------------------------------------------------------------------------------


async def test_loads_at_once_never_reserve_the_same_bytes(world: World) -> None:
    tasks = [world.begin(f"m{number}", 3) for number in range(8)]
    await until(lambda: sum(task.done() for task in tasks) >= 5)
    assert len(world.granted) == 3
    assert sum(world.held_gib.values()) == 9
    assert all(isinstance(task.exception(), NoRoom) for task in tasks if task.done())


async def test_what_a_victim_gives_is_for_the_model_it_goes_for(world: World) -> None:
    await world.load("a", 8)
    world.may_leave.clear()
    first = world.begin("d", 10, "a")
    await until(lambda: world.evicted == ["a"])
    second = world.begin("e", 2)  # fits beside the victim, and not beside its successor
    for _ in range(5):  # all that it would do if it did not wait for its turn
        await world.offers.appraise("e")
        await world.reservations.measure()
    assert "e" not in world.granted
    world.may_leave.set()
    await refused(second)
    assert not first.done()
    assert world.held_gib == {"d": 10}


async def test_several_devices_are_reserved_together() -> None:
    world = World(devices=2)
    profile = Profile("d", vram_mb=12 << 10, min_devices=2)
    world.offers.add("d", "lab/d", profile)
    async with world.reservations.reserve(LoadOrder("d"), lambda gone, total: None) as reservation:
        assert reservation.devices == (0, 1)
        assert len(reservation.ranks) == 2
        assert world.held_gib == {"d": 6}


@pytest.mark.parametrize(
    ("ordered", "granted"),
    [((1,), (1,)), ((), (0,)), ((0, 1), (0,))],
    ids=["the order's", "any", "meant for an older profile"],
)
async def test_on_which_devices(ordered: tuple[int, ...], granted: tuple[int, ...]) -> None:
    world = World(devices=2)
    world.offers.add("d", "lab/d", Profile("d", vram_mb=6 << 10))
    order = LoadOrder("d", devices=ordered)
    async with world.reservations.reserve(order, lambda gone, total: None) as reservation:
        assert reservation.devices == granted


# -- cancellation ----------------------------------------------------------------------------------


@contextlib.contextmanager
def held_up(world: World, stage: str) -> Iterator[Callable[[], object]]:
    """Keeps loads in one stage of a reservation; yields whether one is there."""
    try:
        match stage:
            case "waiting for its turn" | "taking a victim down":
                world.may_leave.clear()
                yield lambda: world.evicted == ["a"]
            case "appraising":
                world.offers.may_return.clear()
                yield lambda: world.offers.is_appraising
            case "measuring":
                world.meter.may_return.clear()
                yield lambda: world.meter.is_measuring
            case _:
                yield lambda: "d" in world.granted
    finally:
        world.may_leave.set()
        world.offers.may_return.set()
        world.meter.may_return.set()


@pytest.mark.parametrize(
    "stage", ["waiting for its turn", "appraising", "measuring", "taking a victim down", "loading"]
)
async def test_a_load_that_is_cancelled_leaks_nothing(world: World, stage: str) -> None:
    await world.load("a", 8)
    with held_up(world, stage) as is_there:
        task = first = world.begin("d", 6, "a")
        await until(is_there, what=stage)
        if stage == "waiting for its turn":
            task = world.begin("e", 6, "a")
            await asyncio.sleep(0)
        assert not task.done()
        await ended(task)
        await ended(first)
    assert set(world.held_gib) <= {"a"}
    await world.load("f", DEVICE_GIB, *world.held_gib)
    assert world.held_gib == {"f": DEVICE_GIB}


# -- measuring -------------------------------------------------------------------------------------


async def test_engines_are_measured_while_they_run(world: World) -> None:
    await world.load("a", 4)
    world.granted["a"].pids = (17, 18)
    world.meter.engine_bytes = {"a": 3 * GIB, "gone": GIB}
    await world.reservations.measure()
    assert world.meter.pids == {"a": (17, 18)}
    assert world.offers.measured == (("a", 3 * GIB),)
    assert len(world.reservations.usage) == 1


async def test_what_a_load_took_is_known_at_the_next_one(world: World) -> None:
    await world.load("a", 4)
    world.offers.record_failure("a", frozenset())
    world.reservations.loaded("a", 2.5, 2.0)
    offer = world.offers.get("a")
    assert offer is not None
    assert (offer.load_seconds, offer.expected_seconds) == (2.5, 2.0)
    assert world.offers.failures("a") == 0
    assert not world.offers.is_broken("a")


async def test_loads_are_numbered_in_the_order_in_which_they_begin(world: World) -> None:
    for number, model in enumerate("abc", start=1):
        await world.load(model, 1)
        assert world.granted[model].load_number == number
    with pytest.raises(NoRoom):
        await world.load("d", 11)
    assert world.reservations.loads == 3, "one that got no memory has not begun"
