"""What is written for people stays true: examples parse, links resolve, commands exist."""

import datetime
import re
import subprocess
from pathlib import Path

import msgspec
import pytest

import cortex.config
import cortex.fleet.models_file
import neuron.config
from protocol.runtime import settings
from tests.docs import command_lines
from tests.docs.pages import EXAMPLES, PAGES, ROOT, name_of
from tests.support.nats import server_binary


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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} → {target}"
    for target in re.findall(r"`((?:src|tests|docs|deploy|bin)/[\w./-]+)`", text):
        assert (ROOT / target).exists(), f"{page.name} → {target}"


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=name_of)
def test_commands_and_options_exist(page: Path) -> None:
    faults = [
        f"{line.text}: {fault}"
        for line in command_lines.in_page(page.read_text(encoding="utf-8"))
        if (fault := line.fault)
    ]
    assert not faults, f"{name_of(page)}:\n" + "\n".join(faults)


@pytest.mark.parametrize("program", command_lines.PROGRAMS)
def test_examples_in_the_help_are_taken(program: str) -> None:
    examples = list(command_lines.in_help(command_lines.PROGRAMS[program]))
    assert examples
    assert not [line for line in examples if line.fault]


@pytest.mark.parametrize(
    "mistake",
    [
        "cortex frobnicate",
        "Ask with `cortex frobnicate`.",
        "```bash\ncortex ps --frob\n```",
        "```\nbin/cortex ps --frob   # what is loaded\n```",
        "```bash\ncortex load a \\\n    --frob\n```",
        "```\ncortex load\n```",
        "- cortex ps --frob",
        "```sh title=x\ncortex ps --frob\n```",
        "~~~\ncortex ps --frob\n~~~",
        "```console\n$ neuron serve --frob\n```",
        "```bash\ncd there && cortex show a b\n```",
        "```bash\nNATS_TOKEN=x cortex unload a --drain-seconds soon\n```",
        "```bash\nbin/frobnicate\n```",
        "```bash\nbin/check --frob\n```",
        "```bash\nbin/test tests/frob\n```",
        "```bash\npython -m bench.frob\n```",
    ],
)
def test_a_mistaken_command_is_found(mistake: str) -> None:
    found = list(command_lines.in_page(f"# A page\n\nSome words.\n\n{mistake}\n"))
    assert found
    assert any(line.fault for line in found)


def test_releases_carry_dates() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    dates = []
    for head in heads[1:]:
        version = re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d)", head)
        assert version, head
        dates.append(datetime.date.fromisoformat(version[1]))
    assert dates == sorted(dates, reverse=True)


def test_the_metrics_table_lists_every_metric() -> None:
    page = (ROOT / "docs/operating.md").read_text()
    for source in (
        "src/cortex/telemetry/metrics.py",
        "src/cortex/gateway.py",
        "src/neuron/http.py",
    ):
        for name in re.findall(r'"((?:cortex|neuron)_[a-z_]+)"', (ROOT / source).read_text()):
            assert name in page, name
