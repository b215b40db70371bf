"""What becomes of jobs whose worker ends while their prompts are prepared."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from neuron.ipc.messages import EngineStats, SamplingParams
from neuron.service.identity import Identity
from neuron.service.jobs.gateway_liveness import GatewayLiveness
from neuron.service.jobs.registry import Jobs
from neuron.service.jobs.worker import ServedModel, Worker, WorkerContext
from protocol import codec, subjects
from protocol.bus import JobLanes
from protocol.generate import GenerateRequest
from protocol.job import Job, Priority
from tests.support.nats import NatsServer, connected
from tests.support.waiting import background, until

JOB = Job(id="j", gateway="gw", request=GenerateRequest("m"), seed=1, rendered_at=0.0)


class SlowTexts:
    """Prepares no prompt ever."""

    def __init__(self) -> None:
        self.asked = 0
        self.text = None

    async def prepare(self, job: Job, ready: object) -> None:
        self.asked += 1
        await asyncio.Event().wait()


class IdleEngine:
    """An engine that nobody gives anything to compute."""

    def __init__(self) -> None:
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.ready = SimpleNamespace(max_running=4, exact=False, numerics="")
        self.stats = EngineStats()


@pytest.mark.parametrize("is_direct", [False, True])
@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_job_whose_prompt_is_not_ready_goes_to_the_next_worker(
    nats: NatsServer, has_begun: bool, is_direct: bool
) -> None:
    async with connected(nats.url, "gateway") as gateway, connected(nats.url, "node") as bus:
        identity = Identity(bus, "n", "i")
        jobs = Jobs(identity)
        context = WorkerContext(identity, GatewayLiveness(), jobs, lambda: None)
        lanes = JobLanes(gateway)
        await lanes.provision()
        await lanes.provision_model("m")
        texts = SlowTexts()

        def worker() -> tuple[Worker, IdleEngine]:
            engine = IdleEngine()
            return Worker(
                ServedModel("m", cast("Any", texts), "r"), cast("Any", engine), context
            ), engine

        first, engine = worker()
        async with background(first.run()):
            if is_direct:
                await asyncio.sleep(0.2)
                await gateway.publish(subjects.run("m", "n"), codec.encode(JOB))
            else:
                await lanes.publish(
                    codec.encode(JOB),
                    model="m",
                    priority=Priority.NORMAL,
                    message_id="1",
                    ttl_seconds=60,
                )
            await until(lambda: texts.asked if has_begun else jobs.get("j"))
            engine.died.set_result("killed")
            await until(lambda: not jobs.get("j"), seconds=3)
        if is_direct:
            return  # its gateway is not told, and asks another node
        second, _ = worker()
        asked, began = texts.asked, time.monotonic()
        async with background(second.run()):
            await until(lambda: texts.asked > asked, seconds=3)
        assert time.monotonic() - began < 1.0, "it was given back, not only left"


async def test_a_job_goes_on_after_what_its_cancelled_task_had_to_complete(
    nats: NatsServer,
) -> None:
    """Two tasks that work on one answer would mix its tokens."""
    async with connected(nats.url) as bus:
        identity = Identity(bus, "n", "i")
        context = WorkerContext(identity, GatewayLiveness(), Jobs(identity), lambda: None)
        engine, asked = IdleEngine(), asyncio.Event()

        async def add(_: object) -> None:
            asked.set()
            await asyncio.Event().wait()

        idle = cast(Any, engine)
        idle.add, idle.abort = add, lambda _: None
        worker = Worker(ServedModel("m", cast(Any, SlowTexts()), "r"), idle, context)
        entry = context.jobs.add("j", 1, worker)
        may_go_on = asyncio.Event()
        prompt = SimpleNamespace(tokens=[1], sample=SamplingParams(max_tokens=1))
        entry.running = cast(
            Any,
            SimpleNamespace(
                hold=lambda: None,
                settle=may_go_on.wait,
                job=JOB,
                prompt=prompt,
                tokens=(),
                is_over=False,
                is_parked=True,
            ),
        )
        assert worker.go_on(entry)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not asked.is_set()
        may_go_on.set()
        await asyncio.wait_for(asked.wait(), 5)
        entry.stop()
