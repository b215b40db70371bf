"""What this node could load: every model that it knows of, loaded or not.

A node knows the models of ``default_models``, the folders in ``model_dirs``, what lies complete in
the Hub's cache, whatever an order has named, and what the catalogue lists; the demo when there is
nothing else. For each of them the node says whether it has the files and what it would take here,
so that the placer can decide without asking; what earlier loads took and how many failed is kept
for the next one. Must not know engines, jobs or the bus.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from neuron.config import NeuronConfig
from neuron.files import hub, sources
from neuron.models.errors import LoadError
from neuron.sizing.appraisal import appraise
from protocol.catalogue import Profile
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.fleet import Device, Estimate

log = logging.getLogger("neuron")


Folders = dict[Path, sources.FileStamps]
"""What is in each folder with a model."""


class Offer(NamedTuple):
    """A model as this node could load it."""

    model: str
    source: str
    profile: Profile
    has_files: bool = False
    estimate: Estimate | None = None
    error: WireError | None = None
    """Why it cannot be loaded here."""
    load_seconds: float = 0.0
    """How long its last load took; 0 = it has not been loaded."""
    expected_seconds: float = 0.0
    """How long the next one will take: without what is done only once."""


class Offers:
    """Every model that the node knows of, by its id."""

    def __init__(self, config: NeuronConfig, devices: tuple[Device, ...]) -> None:
        """Raises ``FleetError`` for a source in *config* without a usable name."""
        self._config = config
        self._devices = devices
        self._offers: dict[str, Offer] = {}
        self._sources = {sources.model_id(source): source for source in config.default_models}
        self._catalogue: dict[str, Profile] = {}
        self._seen: dict[tuple[str, Profile], int] = {}  # bytes beside the KV cache
        self._failures: Counter[str] = Counter()
        self._broken: dict[str, sources.FileStamps] = {}  # with the files that do not work

    def __iter__(self) -> Iterator[Offer]:
        return iter(list(self._offers.values()))

    def get(self, model: str) -> Offer | None:
        """Returns what is known of a model; None for an unknown one."""
        return self._offers.get(model)

    def add(self, model: str, source: str, profile: Profile | None) -> None:
        """Makes a model known, because an order names it. Raises ``FleetError`` for a source
        without a usable name."""
        if not source and profile is not None:
            source = _listed_source(profile)
        known = self._offers.get(model)
        is_found = known is not None and not source  # and stays known for as long as it is there
        if not source:
            source = known.source if known else model
        source = _named_so(model, source)
        if not is_found:
            self._sources[model] = source
        self._set(model, source, profile or self._catalogue.get(model) or Profile(model))

    def list_profile(self, model: str, profile: Profile | None) -> None:
        """Notes the catalogue's profile of a model; None = the catalogue does not have one."""
        if profile is None:
            self._catalogue.pop(model, None)
        else:
            self._catalogue[model] = profile

    async def refresh(self, loaded: Collection[str]) -> None:
        """Reads again what is there: folders come and go, the catalogue changes. The *loaded* ones
        stay as they are."""
        cached, found = await asyncio.to_thread(self._found)
        source_of = {**cached, **found, **self._sources}
        for model, profile in self._catalogue.items():
            if not profile.nodes or self._config.name in profile.nodes:
                listed = _listed_source(profile) or source_of.get(model, model)
                try:
                    source_of[model] = _named_so(model, listed)
                except FleetError as error:
                    log.warning("not offered: %s", error)
        if not source_of:
            source_of = {sources.DEMO_ID: sources.DEMO_ID}
        for model in set(self._offers) - set(source_of) - set(loaded):
            del self._offers[model]
        for model in sorted(set(source_of) - set(loaded)):
            self._set(model, source_of[model], self._catalogue.get(model) or Profile(model))
            offer = await self.appraise(model)
            await self._forgive_if_changed(offer)
            is_asked_for = model in found or model in self._sources or model in self._catalogue
            if not is_asked_for and (offer.error or not offer.has_files):
                self._offers.pop(model, None)  # a cache holds all kinds of things

    async def _forgive_if_changed(self, offer: Offer) -> None:
        broken = self._broken.get(offer.model)
        if broken is None:
            return
        if await asyncio.to_thread(sources.file_stamps, offer.source) != broken:
            self.forget_failures(offer.model)

    def folders(self) -> Folders:
        """Looks at which folders with models there are, and what is in them; runs in a thread."""
        return {folder: sources.folder_stamps(folder) for folder, _ in self._folders()}

    async def appraise(self, model: str) -> Offer:
        """Looks at a model's files, and estimates what it would take."""
        offer = self._offers[model]
        folder: Path | None = None
        estimate, error = None, None
        try:
            folder = await asyncio.to_thread(sources.local_folder, offer.source)
            estimate = await asyncio.to_thread(
                appraise,
                folder,
                offer.profile,
                self._config,
                self._devices,
                self._seen.get((offer.source, offer.profile), 0),
            )
        except (FleetError, LoadError) as failure:
            code = ErrorCode.MODEL_UNAVAILABLE
            if isinstance(failure, FleetError):
                code = failure.error.code
            error = WireError(code, str(failure))
        except Exception as bug:  # whatever lies in a folder, the node goes on
            log.exception("looking at %s", model)
            error = WireError(ErrorCode.INTERNAL, f"{type(bug).__name__}: {bug}")
        new = offer._replace(has_files=folder is not None, estimate=estimate, error=error)
        if self._offers.get(model) is offer:
            self._offers[model] = new
        return new

    def failures(self, model: str) -> int:
        """How many loads of a model have failed since the last one that succeeded."""
        return self._failures[model]

    def is_broken(self, model: str) -> bool:
        """Whether the model's last load showed that it does not work."""
        return model in self._broken

    def record_failure(self, model: str, broken: sources.FileStamps | None) -> None:
        """Counts a load that failed; *broken* are the model's files, if it failed because of
        them."""
        self._failures[model] += 1
        self._broken.pop(model, None)
        if broken is not None:
            self._broken[model] = broken

    def forget_failures(self, model: str) -> None:
        """Begins to count again, as the model's files have changed."""
        del self._failures[model]
        self._broken.pop(model, None)

    def record_load(self, model: str, seconds: float, expected_seconds: float) -> None:
        """Notes that a load succeeded, how long it took, and how long another one will take."""
        self.forget_failures(model)
        self._offers[model] = self._offers[model]._replace(
            load_seconds=seconds, expected_seconds=expected_seconds
        )

    def record_bytes(self, model: str, nbytes: int) -> None:
        """Notes that a model's engine was measured to take *nbytes* beside its KV cache; the
        largest measurement counts."""
        if offer := self._offers.get(model):
            key = (offer.source, offer.profile)
            self._seen[key] = max(nbytes, self._seen.get(key, 0))

    def _set(self, model: str, source: str, profile: Profile) -> None:
        known = self._offers.get(model)
        if known is None or (known.source, known.profile) != (source, profile):
            new = Offer(model, source, profile)
            if known is not None:
                new = new._replace(
                    load_seconds=known.load_seconds, expected_seconds=known.expected_seconds
                )
                self.forget_failures(model)  # with other settings it may work
            self._offers[model] = new

    def _found(self) -> tuple[dict[str, str], dict[str, str]]:
        """Finds the sources by model: those in the Hub's cache, and the folders with models."""
        cached = hub.cached_models() if self._config.offer_hub_cache else []
        return _named(cached), _named(source for _, source in self._folders())

    def _folders(self) -> Iterator[tuple[Path, str]]:
        """Every folder with a model, and its source; one in ``owner/name`` keeps both parts as its
        name, as two owners may have models of one name."""
        for place in self._config.model_dirs:
            top = Path(place).expanduser()
            for folder in sources.folders_in(top):
                name = folder.relative_to(top).as_posix()
                yield folder, f"{name}={folder}" if "/" in name else str(folder)


def _listed_source(profile: Profile) -> str:
    """Returns where a profile says the files are; empty when it does not."""
    if not profile.revision:
        return profile.source
    return f"{profile.source or profile.id}@{profile.revision}"


def _named_so(model: str, source: str) -> str:
    """Returns *source* such that its model is called *model*. Raises ``FleetError`` for a name
    that cannot be used."""
    if sources.model_id(source) == model:
        return source
    sources.model_id(f"{model}={source}")
    return f"{model}={source}"


def _named(references: Iterable[str]) -> dict[str, str]:
    """Maps models to their sources, without those that have no usable name."""
    named = {}
    for source in references:
        try:
            named[sources.model_id(source)] = source
        except FleetError as error:
            log.warning("not offered: %s", error)
    return named
