"""cortex.toml: every key works or says that it does not."""

from pathlib import Path

import pytest

from cortex.config import load
from cortex.placement.eviction import Strategy
from cortex.serve import options_of
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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[eviction]\nstrategy = "fifo"\n', "cortex.toml:2: eviction.strategy: Invalid enum value"),
        (
            "[gateway]\ncors_origins = ['chat.example']\n",
            "'chat.example' is not a web origin",
        ),
        ("[gateway]\ncors_origins = ['http://a/b']\n", "without a path"),
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
