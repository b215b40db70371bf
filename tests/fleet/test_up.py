"""``cortex up`` as a person runs it: real processes, real signals, real error messages."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuron import demo_model
from tests.support.fleet import chat_body
from tests.support.up import Up, environment, is_alive, running_up

(DEMO,) = demo_model.__path__
on_the_shared_one = pytest.mark.xdist_group("cortex_up")


@pytest.fixture(scope="module")
def shared_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """For tests after which it is as before: it takes seconds to start."""
    with running_up(tmp_path_factory.mktemp("up") / "data") as up:
        yield up


def _run(*arguments: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
    )


def test_the_printed_curl_line_streams_the_right_answer(tmp_path: Path) -> None:
    with running_up(tmp_path / "data") as up:
        line = re.search(r"^ +(curl .*)$", up.output, re.MULTILINE)
        assert line
        answer = subprocess.run(line[1], shell=True, capture_output=True, text=True, timeout=20)
        assert answer.stdout.rstrip().endswith("data: [DONE]")
        pieces = re.findall(r'"content":"([^"]*)"', answer.stdout)
        assert "42" in "".join(pieces)
        assert up.status("/ready") == 200
        neuron = up.pid_of("neuron serve")
        assert "libtorch" not in Path(f"/proc/{neuron}/maps").read_text()
        engine = up.pid_of("neuron.engine")
        assert "libtorch" in Path(f"/proc/{engine}/maps").read_text()
        token = tmp_path / "data" / "nats" / "token"
        assert token.stat().st_mode & 0o777 == 0o600
        for command in up.children().values():
            assert token.read_text().strip() not in command
        children = up.children()
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(15) == 0
        assert not [c for p, c in children.items() if is_alive(p)]
        assert "Traceback" not in up.output


@on_the_shared_one
def test_nats_server_killed_heals_without_a_restart_of_the_others(shared_up: Up) -> None:
    before = set(shared_up.children())
    nats = shared_up.pid_of("nats-server -c")
    os.kill(nats, signal.SIGKILL)
    shared_up.wait(lambda: not is_alive(nats), "nats is dead")
    shared_up.wait(lambda: "France is Paris" in _answer(shared_up), "healed", seconds=15)
    assert before - set(shared_up.children()) == {nats}


@on_the_shared_one
def test_an_engine_killed_comes_back(shared_up: Up) -> None:
    engine = shared_up.pid_of("neuron.engine")
    os.kill(engine, signal.SIGKILL)
    shared_up.wait(lambda: shared_up.status("/ready") == 503, "noticed")
    shared_up.wait(lambda: shared_up.status("/ready") == 200, "loaded again")
    assert "Paris" in _answer(shared_up)
    assert shared_up.pid_of("neuron.engine") != engine


@on_the_shared_one
@pytest.mark.parametrize("victim", ["cortex serve", "neuron serve"])
def test_a_killed_service_is_started_again(shared_up: Up, victim: str) -> None:
    told = shared_up.output.count("SIGKILL")
    os.kill(shared_up.pid_of(victim), signal.SIGKILL)
    shared_up.wait(lambda: shared_up.output.count("SIGKILL") > told, "said so")
    shared_up.wait(lambda: "Paris" in _answer(shared_up), "healed")


def test_the_only_neuron_killed_mid_stream_costs_nothing_but_time(tmp_path: Path) -> None:
    with running_up(tmp_path / "data") as up:
        body = chat_body("Count to 60", stream=True, ignore_eos=True, max_tokens=300, seed=1)
        with up.post("/v1/chat/completions", body) as answer:
            undisturbed = _contents(list(answer))
        lines: list[bytes] = []
        with up.post("/v1/chat/completions", body) as answer:
            lines += [next(answer) for _ in range(60)]
            os.kill(up.pid_of("neuron serve"), signal.SIGKILL)
            lines += answer
        assert lines[-2] == b"data: [DONE]\n"
        assert _contents(lines) == undisturbed


def test_kill_9_leaves_nothing_behind(tmp_path: Path) -> None:
    with running_up(tmp_path / "data", "--neurons", "2") as up:
        up.wait(lambda: _engines(up) == 2, "each neuron has its engine")
        children = up.children()
        up.process.kill()
        up.process.wait()
        deadline = time.monotonic() + 2
        while alive := [c for p, c in children.items() if is_alive(p)]:
            assert time.monotonic() < deadline, alive
            time.sleep(0.01)


def _engines(up: Up) -> int:
    return sum("neuron.engine" in command for command in up.children().values())


def _contents(lines: list[bytes]) -> str:
    events = [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: {")]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    return "".join(delta.get("content", "") for delta in deltas)


def _answer(up: Up) -> str:
    try:
        return up.ask("What is the capital of France?")
    except OSError:
        return ""


# -- mistakes ----------------------------------------------------------------------------------


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = _run("cortex", "up", "--port", port, "--data", str(tmp_path / "d"))
    assert result.returncode == 78
    assert result.stderr == (
        f"cortex: cannot listen on 127.0.0.1:{port}: address already in use. "
        "Choose another address, or port 0 for any free port.\n"
    )


def test_a_missing_folder_of_models_is_one_line(tmp_path: Path) -> None:
    nowhere = ("--model-dir", str(tmp_path / "nowhere"))
    result = _run("cortex", "up", "--data", str(tmp_path / "d"), *nowhere)
    assert result.returncode == 78
    assert f"the folder {tmp_path / 'nowhere'} does not exist. " in result.stderr


def test_settings_of_the_neurons_can_be_in_a_file(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(DEMO, models / "one")
    file = tmp_path / "neuron.toml"
    file.write_text(f'model_dirs = ["{models}"]\nmemory_mb = 1000\nmax_context = 512\n')
    with running_up(tmp_path / "data", "--neuron-config", str(file)) as up:
        up.wait(lambda: "one: loaded on demand" in up.output, "said so")
        with up.post("/v1/chat/completions", chat_body("Hi", model="one", max_tokens=3)) as said:
            assert said.status == 200
    file.write_text("memory_mib = 3\n")
    result = _run("cortex", "up", "--data", str(tmp_path / "d"), "--neuron-config", str(file))
    assert "memory_mib: unknown key. Did you mean 'memory_mb'?" in result.stdout + result.stderr
    file.write_text("memory_mb = \n")
    result = _run("cortex", "up", "--data", str(tmp_path / "d"), "--neuron-config", str(file))
    assert result.returncode == 78
    assert result.stderr.startswith(f"cortex: {file}")
    missing = str(tmp_path / "no.toml")
    result = _run("cortex", "up", "--data", str(tmp_path / "d"), "--neuron-config", missing)
    assert result.returncode == 78
    assert f"{missing}: cannot be read" in result.stderr


def test_a_missing_model_folder_is_one_line(tmp_path: Path) -> None:
    result = _run("cortex", "up", "--data", str(tmp_path / "d"), "--model", "/no/such/folder")
    assert result.returncode == 78
    assert result.stderr.startswith("cortex: the model folder /no/such/folder does not exist. ")
    assert result.stderr.count("\n") == 1


def test_an_unwritable_data_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = _run("cortex", "up", "--data", str(tmp_path / "file" / "d"))
    assert result.returncode == 78
    assert "cannot be written: not a directory" in result.stderr
    assert "--data DIR" in result.stderr
    assert result.stderr.count("\n") == 1


@on_the_shared_one
def test_two_fleets_cannot_share_a_data_directory(shared_up: Up) -> None:
    result = _run("cortex", "up", "--port", "0", "--data", str(shared_up.data))
    assert result.returncode == 78
    assert f"another 'cortex up' (process {shared_up.process.pid})" in result.stderr


def test_a_damaged_model_is_said_and_the_others_are_served(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    (broken / "model.safetensors").write_bytes(b"\0" * 7)
    models = ("--model", str(broken), "--model", "cortex-demo")
    with running_up(tmp_path / "data", *models) as up:
        up.wait(lambda: "broken on node-1: failed: " in up.output, "said so")
        assert "Paris" in _answer(up)
    alone = Up(tmp_path / "data2", "--model", str(broken))
    assert alone.process.wait(30) == 1
    assert "No model could be loaded" in alone.output
    assert "Traceback" not in alone.output


def test_a_folder_of_models_is_offered_and_loaded_on_demand(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(DEMO, models / "one")
    shutil.copytree(DEMO, models / "owner" / "two")
    (models / "broken").mkdir()
    (models / "broken" / "config.json").write_text("{}")
    (models / "broken" / "model.safetensors").write_bytes(b"")
    options = ("--model-dir", str(models), "--memory-mb", "400", "--slots", "2")
    with running_up(tmp_path / "data", *options) as up:
        assert "one: loaded on demand" in up.output
        assert "owner/two: loaded on demand" in up.output
        assert "broken cannot be loaded now. node-1: " in up.output
        for model in ("one", "owner/two"):
            assert "Paris" in up.ask("What is the capital of France?", model=model, temperature=0)
        up.wait(lambda: "owner/two on node-1: ready" in up.output, "the load")


def test_an_empty_folder_of_models_is_said(tmp_path: Path) -> None:
    with running_up(tmp_path / "data", "--model-dir", str(tmp_path)) as up:
        assert f"no model was found in {tmp_path}" in up.output
        assert "cortex-demo is offered instead" in up.output


def test_services_without_nats_are_one_line() -> None:
    arguments = ("serve", "--nats", "nats://127.0.0.1:9", "--listen", "127.0.0.1:0")
    metrics = {"cortex": ("--metrics-listen", "127.0.0.1:0"), "neuron": ()}
    started = {
        program: subprocess.Popen(
            [sys.executable, "-m", program, *arguments, *metrics[program]],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for program in ("cortex", "neuron")
    }
    for program, process in started.items():
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 1
        assert errors.splitlines()[-1].startswith(
            f"{program}: no NATS server answers at nats://127.0.0.1:9"
        )
        assert "Traceback" not in errors


def test_mistyped_configuration_is_explained(tmp_path: Path) -> None:
    gateway = tmp_path / "cortex.toml"
    gateway.write_text('[gateway]\nlisten = "127.0.0.1:0"\ndrain_second = 3\n')
    result = _run("cortex", "serve", "--config", str(gateway))
    assert result.returncode == 78
    assert f"{gateway}:3: gateway.drain_second: unknown key. Did you mean 'drain_seconds'?" in (
        result.stderr
    )
    node = tmp_path / "neuron.toml"
    node.write_text('name = "n"\nslots = "four"\n')
    result = _run("neuron", "serve", "--config", str(node))
    assert result.returncode == 78
    assert f"{node}:2: slots: Expected `int`, got `str`." in result.stderr


def test_a_missing_nats_server_is_one_line(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cortex", "up", "--port", "0", "--data", str(tmp_path / "d")],
        capture_output=True,
        text=True,
        timeout=30,
        env={**environment(), "CORTEX_NATS_SERVER": "/no/such/binary"},
    )
    assert result.returncode == 78
    assert result.stderr == (
        "cortex: CORTEX_NATS_SERVER=/no/such/binary is not an executable file.\n"
    )
