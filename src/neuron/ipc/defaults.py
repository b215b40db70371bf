"""Defaults that the engine follows and the service's memory estimate relies on; no torch."""

from collections.abc import Mapping
from types import MappingProxyType

STEP_TOKENS: Mapping[str, int] = MappingProxyType({"cpu": 256, "cuda": 4096})
"""Token budget of one step, by kind of device."""


CHUNK_TOKENS: Mapping[str, int] = MappingProxyType({"cpu": 64, "cuda": 1024})
"""Prefill tokens per step beside running streams: about what doubles a decode step's time."""


KERNELS_KEPT = 64
"""How many compiled kernels to keep. oneDNN compiles one for each matrix shape and number of rows,
in half a millisecond. A step needs four to ten, of half a MiB each; without this limit, an engine
that serves steps of all sizes would fill the default 1,024 entries."""
