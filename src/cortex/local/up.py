"""``cortex up``: a whole fleet on one machine, for the first five minutes and for development.

It starts nats-server, a gateway and neurons as children, watches them, shows when the first model
answers, and stops them in order. Listening sockets are opened here and inherited: an address in use
is one clear line before anything has started, and a restarted gateway finds its clients'
connections waiting.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from cortex import __version__
from cortex.config import child_environment
from cortex.local.nats_server import LocalNats
from cortex.local.reporter import DEMO, Reporter
from cortex.local.storage_watch import StorageWatch
from cortex.local.supervisor import HopelessChild, Restarting, Say, SupervisedProcess
from protocol.runtime.listen import open_socket, url_of
from protocol.runtime.settings import SettingsError

GATEWAY_GRACE_SECONDS = 32.0
NEURON_GRACE_SECONDS = 10.0
GATEWAY_PAUSE_SECONDS = 2.0
"""Longest pause before a gateway is started again: its clients wait."""


class UpOptions(msgspec.Struct, frozen=True):
    """What the command line asked for."""

    port: int
    metrics_port: int
    data: Path
    neurons: int
    models: tuple[str, ...]
    """Models to load at once."""
    model_dirs: tuple[str, ...] = ()
    """Folders with models that are loaded on demand."""
    neuron_settings: dict[str, str] = {}
    """Other settings of each neuron, by name."""
    neuron_config: Path | None = None
    """The neuron.toml of each neuron; what is named here goes before it."""
    host: str = "127.0.0.1"

    @property
    def loaded(self) -> tuple[str, ...]:
        """The models that are loaded at the start: the demo where nothing else was asked for."""
        if self.models or self.neuron_config is None:
            return self.models or (() if self.model_dirs else (DEMO,))
        return _names_in(self.neuron_config, "default_models")

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of models that are loaded on demand."""
        if self.model_dirs or self.neuron_config is None:
            return self.model_dirs
        return _names_in(self.neuron_config, "model_dirs")


def _names_in(path: Path, key: str) -> tuple[str, ...]:
    """The list *key* of a neuron.toml. Raises :class:`SettingsError` for a file that cannot be
    read; whether its settings make sense is the neuron's business."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise SettingsError(f"{path}: {error}.") from None
    names = found.get(key, [])
    return tuple(map(str, names)) if isinstance(names, list) else ()


async def up(options: UpOptions, say: Say) -> int:
    """Runs the fleet until Ctrl-C or SIGTERM; returns the exit code.

    Raises :class:`SettingsError` for what cannot work: an address in use, a folder that cannot be
    written, a missing model.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with _locked(options.data):
        fleet = _LocalFleet(options, say)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signum, fleet.stop_or_force, stop)
        try:
            await fleet.start()
            return await fleet.watch(stop)
        except HopelessChild as error:
            say(str(error))
            return 1
        finally:
            await fleet.stop()


@contextlib.contextmanager
def _locked(data: Path) -> Any:
    """Locks the data directory, which two fleets must not share."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        lock: IO[str] = os.fdopen(descriptor, "a+")
    except OSError as error:
        raise SettingsError(
            f"the data directory {data} cannot be written: {(error.strerror or '').lower()}. "
            "Name another one with --data DIR."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip()
            raise SettingsError(
                f"another 'cortex up' (process {holder or 'unknown'}) uses {data}. "
                "Stop it, or name another directory with --data DIR."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


class _LocalFleet:
    """The processes of one ``cortex up``."""

    def __init__(self, options: UpOptions, say: Say) -> None:
        self._options = options
        self._say = say
        self._check_folders()
        self._api = open_socket(f"{options.host}:{options.port}")
        self._metrics = _open_or_any_free(options.host, options.metrics_port, "metrics", say)
        self._broker = LocalNats(options.data / "nats")
        self._broker_watch = Restarting("nats-server", self._broker.start, say)
        self._logs = options.data / "logs"
        self._gateway: SupervisedProcess | None = None
        self._neurons: list[SupervisedProcess] = []
        self._listeners: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def _url(self) -> str:
        return url_of(self._api)

    def _check_folders(self) -> None:
        for model in self._options.models:
            path = model.partition("=")[2] or model
            looks_like_path = path.startswith((".", "/", "~")) or "=" in model
            if looks_like_path and not Path(path).expanduser().is_dir():
                raise SettingsError(
                    f"the model folder {path} does not exist. Name a folder with config.json and "
                    "*.safetensors, or a Hugging Face id such as Qwen/Qwen3-0.6B."
                )
        for folder in self._options.model_dirs:
            if not Path(folder).expanduser().is_dir():
                raise SettingsError(
                    f"the folder {folder} does not exist. Name one that has models in it, each a "
                    "folder with config.json and *.safetensors."
                )

    def stop_or_force(self, stop: asyncio.Event) -> None:
        """Stops in order at the first signal, and at once at the second."""
        if stop.is_set():
            self._say("forced")
            for child in self._children():
                child.kill()
            os._exit(130)
        stop.set()

    async def start(self) -> None:
        """Starts all processes, which then run in the background."""
        self._logs.mkdir(exist_ok=True, mode=0o700)
        self._say(f"cortex {__version__}, data in {self._options.data}")
        process = await self._broker.start()
        self._say(f"nats-server at {self._broker.url}")
        self._spawn(self._broker_watch.run(process), "nats-server")
        nats = ["--nats", self._broker.url, "--nats-token-file", str(self._broker.token_file)]
        self._gateway = self._child(
            "gateway",
            [*_python("cortex"), "serve", *nats, *self._listen_arguments()],
            (self._api.fileno(), self._metrics.fileno()),
            longest_pause=GATEWAY_PAUSE_SECONDS,
        )
        self._spawn(self._gateway.run(), "gateway")
        for number in range(1, self._options.neurons + 1):
            name = f"node-{number}"
            listener = _open_or_any_free("127.0.0.1", 13130 + number, name, None)
            self._listeners.append(listener)  # garbage collection would close a listener
            neuron = self._child(
                name,
                [
                    *_python("neuron"),
                    "serve",
                    *("--name", name),
                    *nats,
                    *("--listen", f"fd://{listener.fileno()}"),
                    *_share_of_cores(self._options.neurons),
                    *self._neuron_arguments(),
                ],
                (listener.fileno(),),
            )
            self._neurons.append(neuron)
            self._spawn(neuron.run(), name)

    def _listen_arguments(self) -> list[str]:
        return [
            *("--listen", f"fd://{self._api.fileno()}"),
            *("--metrics-listen", f"fd://{self._metrics.fileno()}"),
        ]

    def _neuron_arguments(self) -> list[str]:
        options = self._options
        config = options.neuron_config
        return [
            *(("--config", str(config)) if config is not None else ()),
            *(word for model in options.loaded for word in ("--model", model)),
            *(word for folder in options.model_dirs for word in ("--model-dir", folder)),
            *(
                word
                for name, value in options.neuron_settings.items()
                for word in (f"--{name.replace('_', '-')}", value)
            ),
        ]

    def _child(
        self, name: str, command: Sequence[str], fds: Sequence[int], **options: Any
    ) -> SupervisedProcess:
        return SupervisedProcess(
            name,
            command,
            self._logs / f"{name}.log",
            self._say,
            pass_fds=fds,
            environment=child_environment(PYTHONUNBUFFERED="1"),
            **options,
        )

    def _spawn(self, coroutine: Any, name: str) -> None:
        self._tasks.append(asyncio.create_task(coroutine, name=name))

    @property
    def _hints(self) -> str:
        return f"""\
Metrics:            {url_of(self._metrics)}/metrics
Logs:               {self._logs}
Your own models:    cortex up --model FOLDER_OR_HUGGING_FACE_ID, or --model-dir DIR for many
Stop:               Ctrl-C
"""

    def _children(self) -> list[SupervisedProcess]:
        return [*([self._gateway] if self._gateway else []), *self._neurons]

    async def watch(self, stop: asyncio.Event) -> int:
        """Reports on the models until *stop* is set."""
        reporter = Reporter(
            self._url,
            self._say,
            loaded=self._options.loaded,
            folders=self._options.folders,
            hints=self._hints,
        )
        self._spawn(reporter.run(), "report")
        storage = StorageWatch(self._url, self._options.data, self._broker_watch.restart)
        self._spawn(storage.run(), "storage")
        stopped = asyncio.create_task(stop.wait(), name="stop")
        pending: set[asyncio.Task[Any]] = {stopped, *self._tasks}
        try:
            while not stop.is_set():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {stopped}:
                    task.result()
        finally:
            stopped.cancel()
        self._say("stopping; running answers may finish, press Ctrl-C again to cut them off")
        return 0

    async def stop(self) -> None:
        """Stops gateway, neurons and broker in this order, so that none loses what it still
        needs."""
        if self._gateway:
            await self._gateway.stop(GATEWAY_GRACE_SECONDS)
        # Nobody would answer what still arrives, and our own questions would wait for that.
        self._api.close()
        self._metrics.close()
        await asyncio.gather(*(n.stop(NEURON_GRACE_SECONDS) for n in self._neurons))
        self._broker_watch.stopping = True
        await self._broker.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _python(module: str) -> list[str]:
    # -P: a folder called "neuron" in the current directory is not our package
    return [sys.executable, "-P", "-m", module]


def _share_of_cores(neurons: int) -> list[str]:
    """Divides the cores: several engines on one machine must not each take all of them."""
    if neurons == 1:
        return []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ["--threads", str(max(1, (cores or 1) // neurons))]


def _open_or_any_free(host: str, port: int, what: str, say: Say | None) -> socket.socket:
    try:
        return open_socket(f"{host}:{port}")
    except SettingsError:
        listener = open_socket(f"{host}:0")
        if say:
            say(f"port {port} is taken; {what} at {url_of(listener)}")
        return listener
