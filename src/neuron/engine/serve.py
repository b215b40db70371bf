"""The life of an engine process on its channel: load, then step until told to end.

Owns the loop. Commands are drained before every step, so an abort takes effect before the next
one; without work the loop sleeps in ``receive``.
"""

from typing import assert_never

from neuron.engine.channel import EngineEnd
from neuron.engine.engine import Engine
from neuron.engine.loader import load_engine
from neuron.engine.messages import Abort, Add, Fatal, LoadFailed, Shutdown, Start, ToEngine
from neuron.engine.runner import EngineFault
from neuron.engine.shortage import shortage
from neuron.models.errors import LoadCode, LoadError

OK, LOAD_FAILED, FATAL = 0, 3, 4
"""Exit statuses; 1 and 2 are Python's own."""


def serve(channel: EngineEnd) -> int:
    """Serves one model; returns the exit status. Raises ChannelClosed when the service is gone."""
    first, *rest = channel.receive(wait=True)
    assert isinstance(first, Start), first
    try:
        engine, ready = load_engine(first, channel.send)
    except LoadError as error:
        channel.send(LoadFailed(error.code, error.message))
        return LOAD_FAILED
    except Exception as error:
        if (lacking := shortage(error)) is None:
            raise
        message = (
            f"{first.device} ran out of memory during the load: {lacking}. Unload a model first, "
            "or give this one less with max_context or slots."
        )
        channel.send(LoadFailed(LoadCode.OUT_OF_MEMORY, message))
        return LOAD_FAILED
    channel.send(ready)
    try:
        return _run(engine, channel, rest)
    except EngineFault as error:
        channel.send(Fatal(str(error)))
    except Exception as error:
        if (lacking := shortage(error)) is None:
            raise
        channel.send(Fatal(f"{first.device} ran out of memory while it computed: {lacking}"))
    return FATAL


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
                case Start():
                    raise EngineFault("the service sent a second Start")
                case _:
                    assert_never(command)
        for late in engine.expire():
            channel.send(late)
        if engine.has_work:
            channel.send(engine.step())
        commands = channel.receive(wait=not engine.has_work)
