"""The latest requests of this gateway, for anybody who asks what became of one."""

from collections import OrderedDict

from cortex.telemetry.request_record import Record

KEPT = 1000


class History:
    """Finished and running requests, by id."""

    def __init__(self, size: int = KEPT) -> None:
        self.size = size
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._outcomes: dict[str, str] = {}

    def began(self, record: Record) -> None:
        """Records that a request was admitted."""
        self._records[record.id] = record
        while len(self._records) > self.size:
            gone, _ = self._records.popitem(last=False)
            self._outcomes.pop(gone, None)

    def ended(self, record: Record, outcome: str) -> None:
        """Records how a request ended."""
        if record.id in self._records:
            self._outcomes[record.id] = outcome

    def get(self, request_id: str) -> dict[str, object] | None:
        """Looks up a request; accepts its id with a dialect's prefix, too."""
        bare = request_id.replace("_", "-").rpartition("-")[2]
        record = self._records.get(bare)
        if record is None:
            return None
        return record.told(self._outcomes.get(record.id, "running"))
