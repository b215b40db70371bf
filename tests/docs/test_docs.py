"""What is written for people stays true: examples parse, links resolve, commands exist."""

import re
import subprocess
from pathlib import Path

import click
import msgspec
import pytest

import cortex.cli.main
import cortex.config
import cortex.fleet.models_file
import neuron.cli
import neuron.config
from protocol.runtime import settings
from tests.support.nats import server_binary

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_example_files_are_the_defaults() -> None:
    gateway = settings.load(ROOT / "deploy/cortex.toml", cortex.config.GatewayConfig)
    assert gateway == cortex.config.GatewayConfig()
    assert cortex.fleet.models_file.load(ROOT / "deploy/models.toml")
    node = settings.load(ROOT / "deploy/neuron.toml", neuron.config.NeuronConfig)
    assert node == neuron.config.NeuronConfig()


def test_the_example_files_show_every_key() -> None:
    for name, kind in (
        ("cortex.toml", cortex.config.GatewaySection),
        ("cortex.toml", cortex.config.NatsSection),
        ("cortex.toml", cortex.config.EvictionSection),
        ("neuron.toml", neuron.config.NeuronConfig),
    ):
        text = (ROOT / "deploy" / name).read_text()
        for field in msgspec.structs.fields(kind):
            assert re.search(rf"^{field.name} = ", text, re.MULTILINE), (name, field.name)


def test_nats_takes_our_configuration(tmp_path: Path) -> None:
    result = subprocess.run(
        [server_binary(), "-c", str(ROOT / "deploy/nats.conf"), "-t"],
        capture_output=True,
        text=True,
        env={"NATS_TOKEN": "secret"},
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr.lower()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} → {target}"
    for target in re.findall(r"`((?:src|tests|docs|deploy|bin)/[\w./-]+)`", text):
        assert (ROOT / target).exists(), f"{page.name} → {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_options_exist(page: Path) -> None:
    groups: dict[str, click.Group] = {"cortex": cortex.cli.main.cli, "neuron": neuron.cli.cli}
    for program, verb, rest in re.findall(
        r"^\s*(?:bin/)?(cortex|neuron) (\w+)(.*)$", page.read_text(), re.MULTILINE
    ):
        command = groups[program].commands.get(verb)
        if command is None:
            continue  # a sentence, not a command line
        known = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"(?<!\S)--[\w-]+", rest.partition("#")[0]):
            assert option in known, f"{page.name}: {program} {verb} {option}"


def test_the_metrics_table_lists_every_metric() -> None:
    page = (ROOT / "docs/operating.md").read_text()
    for source in (
        "src/cortex/telemetry/metrics.py",
        "src/cortex/gateway.py",
        "src/neuron/http.py",
    ):
        for name in re.findall(r'"((?:cortex|neuron)_[a-z_]+)"', (ROOT / source).read_text()):
            assert name in page, name
