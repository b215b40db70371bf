"""The life of an engine process on its channel: load, then step until told to end.

Owns the loop. Commands are read before every step, so an abort takes effect before the next one;
without work the loop sleeps in ``receive``. Ranks other than 0 do what rank 0 tells them.
"""

import contextlib
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar, assert_never

import torch
from tokenizers import Tokenizer

from neuron.engine.engine import Engine
from neuron.engine.forward import Forward
from neuron.engine.loader import load_engine, load_follower, load_tokenizer
from neuron.engine.machine.barrier_waits import BarrierWaits
from neuron.engine.machine.out_of_memory import shortage
from neuron.engine.ranks.broadcast import FollowerEnd, RankBroadcast
from neuron.engine.runner import EngineFault
from neuron.ipc.channel import ChannelClosed, EngineEnd
from neuron.ipc.messages import Abort, Add, Fatal, LoadFailed, Prepare, Shutdown, Start, ToEngine
from neuron.ipc.rank_commands import Compute, Join, Project
from neuron.models.errors import LoadCode, LoadError

OK, CRASHED, LOAD_FAILED, FATAL = 0, 1, 3, 4
"""Exit statuses; Python itself uses 1 for a crash, and 2."""
T = TypeVar("T")


def run_rank(connection: socket.socket, rank: int, lines: Sequence[socket.socket]) -> NoReturn:
    """Runs an engine process from its first message to its end.

    *connection* leads to the service, *lines* from rank 0 to the others, or from another rank to
    it. A bug is reported on both the channel and stderr.
    """
    channel = EngineEnd(connection)
    held: list[object] = []
    status = CRASHED
    try:
        if rank:
            status = serve_rank(channel, FollowerEnd(lines[0]), rank, held)
        else:
            status = serve(channel, RankBroadcast(lines), held)
    except ChannelClosed:
        status = OK
    except Exception as error:
        traceback.print_exc()
        with contextlib.suppress(ChannelClosed):
            channel.send(Fatal(f"{type(error).__name__}: {error}"))
    finally:
        sys.stderr.flush()
        # The kernel takes the memory back at once. Freeing what is held takes a quarter of a second
        # for a large vocabulary alone.
        os._exit(status)


def serve(channel: EngineEnd, leader: RankBroadcast, held: list[object]) -> int:
    """Serves one model as rank 0, leading the ranks of *leader*; returns the exit status.

    *held* keeps the model for longer than this call. Raises ChannelClosed when the service or
    another rank is gone.
    """
    start, tokenizer, rest = _start(channel)
    loaded = _load(channel, start, lambda: load_engine(start, channel.send, leader, tokenizer))
    if loaded is None:
        return LOAD_FAILED
    engine, ready = loaded
    held.append(engine)
    channel.send(ready)
    return _work(channel, start, lambda: _run(engine, channel, rest))


def serve_rank(channel: EngineEnd, line: FollowerEnd, rank: int, held: list[object]) -> int:
    """Runs a rank other than 0; returns the exit status.

    *held* keeps its part for longer than this call. Raises ChannelClosed when rank 0 is gone.
    """
    start, _, _ = _start(channel)
    forward = _load(channel, start, lambda: load_follower(start, channel.send, line, rank))
    if forward is None:
        return LOAD_FAILED
    held.append(forward)
    return _work(channel, start, lambda: _obey(forward, line))


def _start(channel: EngineEnd) -> tuple[Start, Tokenizer | None, list[ToEngine]]:
    """Waits until it is told what to load; returns the tokenizer if it has been read meanwhile."""
    prepared: dict[str, Tokenizer] = {}
    messages = channel.receive(wait=True)
    first, *rest = messages
    while isinstance(first, Prepare):
        with contextlib.suppress(LoadError):  # the load says it
            prepared = {first.model_dir: load_tokenizer(Path(first.model_dir))}
        first, *rest = rest or channel.receive(wait=True)
    assert isinstance(first, Start), first
    return first, prepared.get(first.model_dir), rest


def _load(channel: EngineEnd, start: Start, load: Callable[[], T]) -> T | None:
    """Runs *load*; returns None if it fails, after telling the service why.

    From then on compute threads don't spin against whatever else the host does.
    """
    waits = BarrierWaits()
    if torch.device(start.device).type == "cpu":
        waits.start()
    try:
        loaded = load()
        waits.forget()
        return loaded
    except LoadError as error:
        channel.send(LoadFailed(error.code, error.message))
    except Exception as error:
        if (lacking := shortage(error)) is None:
            raise
        message = (
            f"{start.device} ran out of memory while loading: {lacking}. Unload another model "
            "first, or lower max_context or slots for this one."
        )
        channel.send(LoadFailed(LoadCode.OUT_OF_MEMORY, message))
    return None


def _work(channel: EngineEnd, start: Start, work: Callable[[], int]) -> int:
    try:
        return work()
    except EngineFault as error:
        channel.send(Fatal(str(error)))
    except Exception as error:
        if (lacking := shortage(error)) is None:
            raise
        channel.send(Fatal(f"{start.device} ran out of memory while computing: {lacking}"))
    return FATAL


@torch.inference_mode()
def _obey(forward: Forward, line: FollowerEnd) -> int:
    """Carries out rank 0's commands until rank 0 is gone."""
    step = 0
    while True:
        match line.next():
            case Compute(step=number) as batch:
                step += 1
                if number != step:
                    raise EngineFault(f"rank 0 sent step {number}, but step {step} was due")
                forward.compute(batch)
            case Project(step=number, rows=rows):
                if number != step:
                    raise EngineFault(
                        f"rank 0 wants rows of step {number}, but the last was {step}"
                    )
                forward.logits(rows)
            case Join():
                raise EngineFault("rank 0 sent a second Join")
            case other:
                assert_never(other)


def _run(engine: Engine, channel: EngineEnd, commands: list[ToEngine]) -> int:
    while True:
        for command in commands:
            match command:
                case Add():
                    refused = engine.add(command)
                    if refused is not None:
                        channel.send(refused)
                case Abort():
                    engine.abort(command.id)
                case Shutdown():
                    return OK
                case Start() | Prepare():
                    raise EngineFault("the service sent a second Start")
                case _:
                    assert_never(command)
        for late in engine.expire():
            channel.send(late)
        if engine.has_work:
            channel.send(engine.step())
        commands = channel.receive(wait=not engine.has_work)
