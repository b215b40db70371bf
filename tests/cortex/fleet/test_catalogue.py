"""models.toml: names lead to models, and mistakes are said with their place."""

from pathlib import Path

import msgspec
import pytest

from cortex.fleet.catalogue import Catalogue
from cortex.fleet.models_file import load
from protocol import codec, keys
from protocol.catalogue import CatalogueRecord, Limits, Origin, Profile, SamplingDefaults
from protocol.generate import GenerateRequest, Message, Role, Sampling
from protocol.runtime.settings import SettingsError

FILE = """\
[aliases]
"small" = "cortex-demo"
"claude-*" = "Qwen/Qwen3-8B"
"claude-*haiku*" = "cortex-demo"

[[models]]
id = "Qwen/Qwen3-8B"
aliases = ["qwen", "gpt-?"]
harness = "candle"
vram_mb = 19000
min_devices = 2
min_device_vram_mb = 10000
pinned_on = ["gpu-large"]

[models.limit]
context = 32768

[[models]]
id = "cortex-demo"
residency_priority = 50
sampling.temperature = 0.2
"""


def loaded(tmp_path: Path, text: str) -> Catalogue:
    path = tmp_path / "models.toml"
    path.write_text(text)
    catalogue = Catalogue()
    put(catalogue, *(CatalogueRecord("i", profile) for profile in load(path) or ()))
    return catalogue


def put(catalogue: Catalogue, *records: CatalogueRecord) -> None:
    for record in records:
        catalogue.key_changed(keys.catalogue(record.profile.id), codec.encode(record))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("qwen", "Qwen/Qwen3-8B"),
        ("gpt-4", "Qwen/Qwen3-8B"),
        ("gpt-40", "gpt-40"),
        ("small", "cortex-demo"),
        ("claude-opus", "Qwen/Qwen3-8B"),
        ("claude-3-haiku-2024", "cortex-demo"),
        ("Qwen", "Qwen"),
        ("claude-local", "claude-local"),
    ],
)
def test_a_name_leads_to_a_model(tmp_path: Path, name: str, model: str) -> None:
    catalogue = loaded(tmp_path, FILE)
    assert catalogue.resolve(name, known=["claude-local"]) == model


def test_profiles_say_what_the_file_says(tmp_path: Path) -> None:
    catalogue = loaded(tmp_path, FILE)
    qwen, demo = catalogue.profile("Qwen/Qwen3-8B"), catalogue.profile("cortex-demo")
    assert (qwen.min_devices, qwen.limit.context, qwen.residency) == (2, 32768, 1000)
    assert (demo.sampling.temperature, demo.residency) == (0.2, 50)
    other = catalogue.profile("unlisted")
    assert (other, other.residency) == (Profile("unlisted"), 100)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[models]]\nid = 'a'\npined_on = ['x']", "toml:3: models[0].pined_on: unknown key. Did"),
        ("[[models]]\nid = 'a'\nmin_devices = 'x'", "toml:3: models[0].min_devices: Expected"),
        ("[[models]]\nid = 'a'\nmin_devices = 0", "('a'): min_devices = 0: must be at least 1"),
        ("[[models]]\nid = 'a'\nslots = -1", "slots = -1: must not be negative"),
        ("[[models]]\nid = 'a'\nquant = 'Q4'", "quant = 'Q4': quantised models are not served"),
        ("[[models]]\nid = 'a'\ntool_calls = 'x'", "'x' is unknown. Allowed: auto, hermes, xml"),
        ("[[models]]\nid = 'a'\npinned_on = ['X y']", "models[0] ('a'): "),
        ("[[models]]\nid = 'a'\npinned_on = ['x']\nnodes = ['y']", "pinned_on names x, which"),
        ("[[models]]\nid = 'a'\nmin_replicas = 2", "exceeds max_replicas = 1"),
        ("[[models]]\nid = 'a'\n[[models]]\nid = 'a'", "models[1] ('a'): another model"),
        ("[[models]]\nid = 'a'\naliases = ['b']\n[[models]]\nid = 'b'", "alias 'b' of a is also"),
        ("[aliases]\na = 'm'\n[[models]]\nid = 'n'\naliases = ['a']", "stands for both n and m"),
        ("[aliases]\na = 'b'\nb = 'c'", "leads to 'b', which is itself an alias"),
        ("[[models]]\n", "missing required field `id`"),
        ("[[models]\n", "models.toml:1: "),
    ],
)
def test_mistakes_are_said_with_their_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, text)
    assert says in str(caught.value)


def test_no_file_is_an_empty_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.fleet.models_file.DEFAULT_PATH", tmp_path / "none.toml")
    assert load(None) is None
    with pytest.raises(SettingsError):
        load(tmp_path / "none.toml")


def test_a_request_gets_the_profiles_defaults_and_limits() -> None:
    catalogue = Catalogue()
    profile = Profile("m", ("alias",), sampling=SamplingDefaults(temperature=0.2, top_k=40))
    put(catalogue, CatalogueRecord("i", msgspec.structs.replace(profile, limit=Limits(output=100))))

    def applied(**sampling: object) -> GenerateRequest:
        asked = Sampling(**sampling)  # type: ignore[arg-type]
        request = GenerateRequest("alias", (Message(Role.USER, "Hi"),), sampling=asked)
        return catalogue.applied(request, [])

    assert applied().model == "m"
    assert applied(top_k=0).sampling == Sampling(temperature=0.2, top_k=0, max_tokens=100)
    assert applied(max_tokens=7).sampling.max_tokens == 7
    assert applied(max_tokens=1000).sampling.max_tokens == 100


def test_a_file_is_written_where_it_differs_and_takes_back_only_its_own() -> None:
    catalogue = Catalogue()
    put(
        catalogue,
        CatalogueRecord("old", Profile("same")),
        CatalogueRecord("old", Profile("gone")),
        CatalogueRecord("old", Profile("added"), Origin.OPERATOR),
        CatalogueRecord("old", Profile("changed")),
    )
    file = [Profile("same"), Profile("changed", ("x",)), Profile("new")]
    new, gone = catalogue.changes(file, "me")
    assert [record.profile.id for record in new] == ["changed", "new"]
    assert {(record.instance, record.origin) for record in new} == {("me", Origin.FILE)}
    assert gone == ["gone"]
    catalogue.key_changed(keys.catalogue("gone"), None)
    assert catalogue.models == ["added", "changed", "same"]


def test_a_newer_versions_record_is_read_and_rubbish_ignored() -> None:
    catalogue = Catalogue()
    catalogue.key_changed("m", b'{"instance":"i","profile":{"id":"m","new":1},"more":2}')
    catalogue.key_changed("n", b"rubbish")
    assert catalogue.models == ["m"]
