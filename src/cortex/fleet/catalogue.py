"""The catalogue: profiles of models, and the names that lead to them.

A reducer over its KV bucket. A name is looked up as a model's id, then as an exact alias, then as a
pattern: of several patterns that match, the one with the most fixed characters.
"""

import fnmatch
import logging
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

import msgspec

from protocol import codec, keys
from protocol.catalogue import CatalogueRecord, Origin, Profile
from protocol.generate import GenerateRequest
from protocol.names import InvalidName, untoken

log = logging.getLogger("catalogue")


class _Names(NamedTuple):
    """The aliases of all models."""

    aliases: dict[str, str]
    """The model behind each, patterns included."""
    patterns: tuple[str, ...]
    """The best first."""
    is_pattern: frozenset[str]

    @classmethod
    def of(cls, records: Mapping[str, CatalogueRecord]) -> "_Names":
        aliases = {
            alias: model
            for model, record in sorted(records.items())
            for alias in record.profile.aliases
        }
        patterns = (alias for alias in aliases if any(sign in alias for sign in "*?["))
        found = sorted(patterns, key=lambda alias: (-_fixed(alias), alias))
        return cls(aliases, tuple(found), frozenset(found))


class Catalogue:
    """All profiles, from files and operators."""

    def __init__(self) -> None:
        self._records: dict[str, CatalogueRecord] = {}
        self._made = _Names({}, (), frozenset())
        self._names_of = 0
        self.version = 0
        """Changes whenever a profile does."""

    def key_changed(self, key: str, value: bytes | None) -> None:
        """Takes in a key of ``cortex_catalogue`` that was written, or removed (None)."""
        try:
            model = untoken(key)
            if value:
                self._records[model] = codec.read_catalogue_record(value)
            else:
                self._records.pop(model, None)
        except (InvalidName, codec.UnreadableMessage) as error:
            log.warning("ignored the unreadable record %s in %s: %s", key, keys.CATALOGUE, error)
            return
        self.version += 1

    def __contains__(self, model: str) -> bool:
        """Whether a model has a profile."""
        return model in self._records

    @property
    def _names(self) -> "_Names":
        """All aliases; made when they are needed, as profiles come by the thousand at the start."""
        if self._names_of != self.version:
            self._made, self._names_of = _Names.of(self._records), self.version
        return self._made

    @property
    def models(self) -> list[str]:
        """Lists all models that have a profile."""
        return sorted(self._records)

    @property
    def names(self) -> dict[str, str]:
        """Returns exact aliases with their models."""
        names = self._names
        return {a: model for a, model in names.aliases.items() if a not in names.is_pattern}

    def listed(self, model: str) -> Profile | None:
        """Returns the model's profile; None if it has none."""
        record = self._records.get(model)
        return record.profile if record else None

    def origin(self, model: str) -> Origin | None:
        """Says who wrote its profile; None when it has none."""
        record = self._records.get(model)
        return record.origin if record else None

    def owner(self, alias: str) -> str:
        """Returns the model that has exactly this alias; empty if none has."""
        return self._names.aliases.get(alias, "")

    def profile(self, model: str) -> Profile:
        """Returns the profile of *model*; all defaults when it has none."""
        return self.listed(model) or Profile(model)

    def resolve(self, name: str, known: Container[str]) -> str:
        """Returns the model that *name* means: *name* itself when it is a model (*known* ones have
        no profile), or when no alias leads anywhere."""
        if name in self._records or name in known:
            return name
        names = self._names
        if name in names.aliases:
            return names.aliases[name]
        for pattern in names.patterns:
            if fnmatch.fnmatchcase(name, pattern):
                return names.aliases[pattern]
        return name

    def applied(self, request: GenerateRequest, known: Container[str]) -> GenerateRequest:
        """Returns *request* with its model's id, and with the profile's sampling where it sets
        none."""
        model = self.resolve(request.model, known)
        profile = self.profile(model)
        own, usual = request.sampling, profile.sampling
        changes = {
            field: getattr(usual, field)
            for field in usual.__struct_fields__
            if getattr(own, field) is None
        }
        if profile.limit.output:
            asked = own.max_tokens or usual.max_tokens or profile.limit.output
            changes["max_tokens"] = min(asked, profile.limit.output)
        sampling = msgspec.structs.replace(own, **changes)
        return msgspec.structs.replace(request, model=model, sampling=sampling)

    def changes(
        self, profiles: Iterable[Profile], instance: str
    ) -> tuple[list[CatalogueRecord], list[str]]:
        """Compares a file with the catalogue: the records to write, and the models to remove
        because only an earlier file had them."""
        listed = {profile.id: profile for profile in profiles}
        gone = [
            model
            for model, record in self._records.items()
            if record.origin is Origin.FILE and model not in listed
        ]
        new = [
            CatalogueRecord(instance, profile)
            for model, profile in listed.items()
            if (known := self._records.get(model)) is None
            or codec.encode(known.profile) != codec.encode(profile)
            or known.origin is not Origin.FILE
        ]
        return new, gone


def _fixed(alias: str) -> int:
    return sum(sign not in "*?[]" for sign in alias)
