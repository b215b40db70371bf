"""What this node shows of its models: one record each, written when it has changed.

Owns the latest record of each model, loaded or not. Must not know who decides a model's state.
"""

from collections.abc import Callable, Collection

from neuron.service.identity import Identity
from neuron.service.residents.announcer import Announcer
from neuron.service.residents.offers import Offer
from protocol import codec, keys
from protocol.errors import WireError
from protocol.fleet import ModelRecord, ModelState, Progress


class RecordWriter:
    """Keeps the records of this node's models and has them announced."""

    def __init__(
        self, identity: Identity, announcer: Announcer, is_warm: Callable[[str], bool]
    ) -> None:
        """*is_warm* says whether a model's weights are kept in host memory."""
        self._is_warm = is_warm
        self._identity = identity
        self._announcer = announcer
        self._records: dict[str, ModelRecord] = {}

    @property
    def records(self) -> tuple[ModelRecord, ...]:
        """Every model's latest record."""
        return tuple(self._records.values())

    def show(self, record: ModelRecord) -> None:
        """Makes *record* the state of its model; writes it if it differs."""
        if self._records.get(record.model) != record:
            self._records[record.model] = record
            self._announcer.set(self._key(record.model), codec.encode(record))

    def offer(
        self,
        offer: Offer,
        state: ModelState,
        *,
        progress: Progress | None = None,
        error: WireError | None = None,
        retry_seconds: float = 0.0,
        failed_before: bool = False,
    ) -> None:
        """Shows a model that is not loaded."""
        self.show(
            ModelRecord(
                node=self._identity.node,
                instance=self._identity.instance,
                model=offer.model,
                state=state,
                progress=progress,
                error=error or offer.error,
                retry_seconds=retry_seconds,
                has_files=offer.has_files,
                estimate=offer.estimate,
                load_seconds=offer.load_seconds,
                is_warm=self._is_warm(offer.model),
                failed_before=failed_before,
            )
        )

    def keep_only(self, models: Collection[str]) -> None:
        """Removes the records of all other models, because they are gone."""
        for model in set(self._records) - set(models):
            del self._records[model]
            self._announcer.remove(self._key(model))

    def _key(self, model: str) -> str:
        return keys.node_model(self._identity.node, model)
