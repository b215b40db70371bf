"""``models.toml``: profiles of models, validated, with errors for the person who wrote the file."""

from pathlib import Path

import msgspec

from protocol.catalogue import CALL_STYLES, Limits, Profile, SamplingDefaults
from protocol.names import InvalidName, check_host_id, check_model_id
from protocol.runtime import settings
from protocol.runtime.settings import SettingsError

DEFAULT_PATH = Path("/etc/cortex/models.toml")


class _Limits(Limits, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    pass


class _Sampling(SamplingDefaults, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    pass


class _Profile(Profile, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A strict profile: on the bus, unknown fields belong to a newer version; in a file they are
    mistakes."""

    limit: _Limits = _Limits()
    sampling: _Sampling = _Sampling()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: tuple[_Profile, ...] = ()
    aliases: dict[str, str] = {}
    """The table of ``"name or pattern" = "model id"``."""


def load(path: Path | None) -> tuple[Profile, ...] | None:
    """Reads the models of *path*, or of the default file; None when neither exists. ``[aliases]``
    are added to the aliases of their models.

    Raises ``SettingsError`` for a file that cannot be used: ``models.toml:12: models[0].pinned_on:
    …``
    """
    if path is None and not DEFAULT_PATH.exists():
        return None
    name = str(path or DEFAULT_PATH)
    found = settings.load(path or DEFAULT_PATH, _File)
    for position, profile in enumerate(found.models):
        where = f"{name}: models[{position}] ({profile.id!r})"
        _check(profile, where)
        if any(other.id == profile.id for other in found.models[:position]):
            raise SettingsError(f"{where}: another model has the same id. Keep one of them.")
    _check_aliases(found, name)
    profiles = {profile.id: profile for profile in found.models}
    for alias, model in found.aliases.items():
        known = profiles.get(model) or _Profile(model)
        aliases = (*known.aliases, *({alias} - set(known.aliases)))
        profiles[model] = msgspec.structs.replace(known, aliases=aliases)
    return tuple(profiles.values())


def read_one(body: bytes) -> Profile:
    """Reads one profile as JSON, with the keys of ``[[models]]``. Raises ``SettingsError``."""
    try:
        profile = msgspec.json.decode(body, type=_Profile)
    except msgspec.MsgspecError as error:
        raise SettingsError(f"{error}.") from None
    _check(profile, repr(profile.id))
    return profile


def _check(profile: Profile, where: str) -> None:
    """Checks what the types do not express."""
    try:
        check_model_id(profile.id)
        for node in (*profile.pinned_on, *profile.nodes):
            check_host_id(node)
    except InvalidName as error:
        raise SettingsError(f"{where}: {error}.") from None
    if profile.quant:
        raise SettingsError(
            f"{where}: quant = {profile.quant!r}: quantised models are not served yet. "
            "Leave it out."
        )
    if profile.tool_calls not in ("auto", *CALL_STYLES):
        raise SettingsError(
            f"{where}: tool_calls = {profile.tool_calls!r} is unknown. Allowed: auto, "
            f"{', '.join(CALL_STYLES)}."
        )
    outside = set(profile.pinned_on) - set(profile.nodes or profile.pinned_on)
    if outside:
        raise SettingsError(
            f"{where}: pinned_on names {', '.join(sorted(outside))}, which nodes excludes. "
            "Add it to nodes, or remove the pin."
        )
    for key in ("min_devices", "max_replicas"):
        if getattr(profile, key) < 1:
            raise SettingsError(f"{where}: {key} = {getattr(profile, key)}: must be at least 1.")
    for key in (
        "min_device_vram_mb",
        "vram_mb",
        "min_replicas",
        "idle_seconds",
        "slots",
        "kv_cache_mb",
    ):
        if getattr(profile, key) < 0:
            raise SettingsError(f"{where}: {key} = {getattr(profile, key)}: must not be negative.")
    if profile.min_replicas > profile.max_replicas:
        raise SettingsError(
            f"{where}: min_replicas = {profile.min_replicas} exceeds max_replicas = "
            f"{profile.max_replicas}."
        )


def _check_aliases(found: _File, name: str) -> None:
    ids = {profile.id for profile in found.models}
    owners: dict[str, str] = {}
    pairs = [(alias, p.id) for p in found.models for alias in p.aliases]
    for alias, model in [*pairs, *found.aliases.items()]:
        if alias in ids:
            raise SettingsError(
                f"{name}: the alias {alias!r} of {model} is also a model's id. Choose another."
            )
        if owners.setdefault(alias, model) != model:
            raise SettingsError(
                f"{name}: the alias {alias!r} stands for both {owners[alias]} and {model}. Keep "
                "one."
            )
    for alias, model in owners.items():
        if model in owners and model not in ids:
            raise SettingsError(
                f"{name}: the alias {alias!r} leads to {model!r}, which is itself an alias. Name "
                "the model."
            )
