"""cortex.toml: every key works or says that it does not."""

from pathlib import Path

import pytest

from cortex.config import load
from cortex.placement.eviction import Strategy
from cortex.serve import limits_of, options_of
from protocol.runtime.http.crowd import HttpLimits
from protocol.runtime.settings import SettingsError

SEED = """
models_config = "/etc/cortex/models.toml"

[gateway]
listen = "0.0.0.0:31313"
metrics_listen = "0.0.0.0:31314"

[eviction]
strategy = "lru"            # or "priority"
defrag_after_cycles = 50

[[neurons]]
name = "beast"
endpoint = "http://beast.lan:13131"

[[neurons]]
name = "blackwell"
endpoint = "http://blackwell.lan:13131"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cortex.toml"
    path.write_text(text)
    return path


def test_a_file_that_lists_its_neurons_is_taken_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = load(written(tmp_path, SEED))
    options = options_of(config)
    assert options.strategy is Strategy.LRU
    assert options.defrag_after_cycles == 50
    assert options.admitted == {"beast", "blackwell"}
    assert "the endpoints of beast, blackwell are ignored" in caplog.text


def test_without_a_list_all_are_welcome(tmp_path: Path) -> None:
    assert options_of(load(written(tmp_path, ""))).admitted == frozenset()


def test_the_edge_is_configured(tmp_path: Path) -> None:
    text = """
    [gateway]
    hosts = ["gpu-box", "Gpu-Box.lan", "10.0.0.7", "2001:db8::1"]
    cors_origins = ["https://chat.example", "http://localhost:3000", "app://chat", "*"]
    max_connections = 100
    max_connections_per_address = 0
    http2 = true
    """
    gateway = load(written(tmp_path, text)).gateway
    assert gateway.hosts == ("gpu-box", "Gpu-Box.lan", "10.0.0.7", "2001:db8::1")
    assert limits_of(gateway) == HttpLimits(connections=100, per_address=0, http2=True)
    assert limits_of(load(written(tmp_path, "")).gateway) == HttpLimits()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[eviction]\nstrategy = "fifo"\n', "cortex.toml:2: eviction.strategy: Invalid enum value"),
        (
            "[gateway]\ncors_origins = ['chat.example']\n",
            "'chat.example' is not a web origin",
        ),
        ("[gateway]\ncors_origins = ['http://a/b']\n", "without a path"),
        ("[gateway]\nhosts = ['http://gpu-box.lan']\n", "'http://gpu-box.lan' is not the name"),
        ("[gateway]\nhosts = ['gpu-box.lan:80']\n", "without a scheme, port, path or pattern"),
        ("[gateway]\nhosts = ['*.lan']\n", "'*.lan' is not the name of a host"),
        ("[gateway]\nhosts = ['']\n", "'' is not the name of a host"),
        ("[gateway]\nhosts = 'gpu-box'\n", "gateway.hosts"),
        ("[gateway]\nmax_connections = 0\n", "max_connections = 0: must be at least 1"),
        ("[gateway]\nmax_connections_per_address = -1\n", "must not be negative"),
        ("[gateway]\nhttp_2 = true\n", "Did you mean 'http2'?"),
        (
            "[eviction]\ndefrag_after_cycles = -1\n",
            "defrag_after_cycles = -1: must not be negative",
        ),
        ("[eviction]\ndefrag_cycles = 1\n", "Did you mean 'defrag_after_cycles'?"),
        ("[gateway]\nload_wait_seconds = -2.0\n", "load_wait_seconds = -2.0: must not be negative"),
        ('[[neurons]]\nname = "Big Box"\n', "neurons: "),
        ('[[neurons]]\nendpoint = "x"\n', "name"),
    ],
)
def test_mistakes_are_said_with_their_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, text))
    assert says in str(caught.value)
