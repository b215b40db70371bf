"""The sampling that a model's authors recommend, from generation_config.json."""

from pathlib import Path
from typing import Self

import msgspec

from neuron.text.files import broken, read_config


class GenerationDefaults(msgspec.Struct, frozen=True):
    """None = the authors say nothing."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    do_sample: bool | None = None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Defaults of a model folder; an absent file recommends nothing.

        ``do_sample: false`` means greedy. Raises ``FleetError`` naming file and key.
        """
        path = folder / "generation_config.json"
        found = read_config(path, cls)
        if found is None:
            return cls()
        if found.do_sample is False:
            return msgspec.structs.replace(found, temperature=0.0)
        for name, low, high in (("temperature", 0, 100), ("top_p", 0, 1), ("min_p", 0, 1)):
            value = getattr(found, name)
            if value is not None and not low <= value <= high:
                raise broken(path, f"key '{name}': {value} is not between {low} and {high}")
        return msgspec.structs.replace(found, top_k=max(found.top_k or 0, 0) or None)
