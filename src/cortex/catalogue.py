"""The catalogue: profiles of models, and the names that lead to them. Pure, but for reading a file.

A name is looked up as a model's id, then as an exact alias, then as a pattern: of several patterns
that match, the one with the most fixed characters.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from protocol import settings
from protocol.catalogue import Profile
from protocol.names import InvalidName, check_host_id, check_model_id
from protocol.settings import SettingsError

DEFAULT_PATH = Path("/etc/cortex/models.toml")


class ModelsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``models.toml``"""

    models: tuple[Profile, ...] = ()
    aliases: dict[str, str] = {}
    """``"name or pattern" = "model id"``"""


class Catalogue:
    """All profiles, and the aliases of the file beside their own."""

    def __init__(self, profiles: Iterable[Profile], aliases: Mapping[str, str]) -> None:
        self.profiles = {profile.id: profile for profile in profiles}
        own = {alias: p.id for p in self.profiles.values() for alias in p.aliases}
        self.aliases = {**own, **aliases}
        self._patterns = sorted(
            (alias for alias in self.aliases if _is_pattern(alias)),
            key=lambda alias: (-_fixed(alias), alias),
        )

    def resolve(self, name: str, known: Iterable[str] = ()) -> str:
        """The model that *name* means: itself when it is one (*known* ones count, profile or
        not), or when no alias leads anywhere."""
        if name in self.profiles or name in known:
            return name
        if name in self.aliases:
            return self.aliases[name]
        for pattern in self._patterns:
            if fnmatch.fnmatchcase(name, pattern):
                return self.aliases[pattern]
        return name

    def profile(self, model: str) -> Profile:
        """What is said about *model*; all defaults when nothing is."""
        return self.profiles.get(model) or Profile(model)


def load(path: Path | None) -> ModelsFile:
    """*path*, or the usual file, or nothing. Raises ``SettingsError`` for one that cannot be used:
    ``models.toml:12: models[0].pinned_on: …``"""
    name = str(path or DEFAULT_PATH)
    found = settings.load_or_default(path, DEFAULT_PATH, ModelsFile)
    for position, profile in enumerate(found.models):
        where = f"{name}: models[{position}] ({profile.id!r})"
        _check(profile, where)
        if any(other.id == profile.id for other in found.models[:position]):
            raise SettingsError(f"{where}: there is another model with this id. Keep one of them.")
    _check_aliases(found, name)
    return found


def _check(profile: Profile, where: str) -> None:
    """What the types do not say."""
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
    outside = set(profile.pinned_on) - set(profile.nodes or profile.pinned_on)
    if outside:
        raise SettingsError(
            f"{where}: pinned_on names {', '.join(sorted(outside))}, where nodes "
            "does not let it run."
        )
    for key in ("min_devices", "max_replicas"):
        if getattr(profile, key) < 1:
            raise SettingsError(f"{where}: {key} = {getattr(profile, key)}: at least 1.")
    for key in (
        "min_device_vram_mb",
        "vram_mb",
        "min_replicas",
        "idle_seconds",
        "slots",
        "kv_cache_mb",
    ):
        if getattr(profile, key) < 0:
            raise SettingsError(f"{where}: {key} = {getattr(profile, key)}: not below 0.")
    if profile.min_replicas > profile.max_replicas:
        raise SettingsError(
            f"{where}: min_replicas = {profile.min_replicas} is more than max_replicas = "
            f"{profile.max_replicas}."
        )


def _check_aliases(found: ModelsFile, name: str) -> None:
    ids = {profile.id for profile in found.models}
    owners: dict[str, str] = {}
    pairs = [(alias, p.id) for p in found.models for alias in p.aliases]
    for alias, model in [*pairs, *found.aliases.items()]:
        if alias in ids:
            raise SettingsError(f"{name}: the alias {alias!r} of {model} is the id of a model.")
        if owners.setdefault(alias, model) != model:
            raise SettingsError(
                f"{name}: the alias {alias!r} stands for {owners[alias]} and for {model}. Keep one."
            )
    for alias, model in owners.items():
        if model in owners and model not in ids:
            raise SettingsError(
                f"{name}: the alias {alias!r} leads to {model!r}, which is an alias itself. Name "
                "the model."
            )


def _is_pattern(alias: str) -> bool:
    return any(sign in alias for sign in "*?[")


def _fixed(alias: str) -> int:
    return sum(sign not in "*?[]" for sign in alias)
