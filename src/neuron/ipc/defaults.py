"""Defaults that the engine obeys and the service counts on when it estimates memory; no torch."""

from collections.abc import Mapping
from types import MappingProxyType

STEP_TOKENS: Mapping[str, int] = MappingProxyType({"cpu": 256, "cuda": 4096})
"""Tokens of one step, by kind of device."""


CHUNK_TOKENS: Mapping[str, int] = MappingProxyType({"cpu": 64, "cuda": 1024})
"""Prefill beside running streams: about what doubles the time of a decode step."""


KERNELS_KEPT = 64
"""oneDNN compiles a kernel for each shape of matrix and number of rows, in half a millisecond. A
step needs four to ten, of half a MiB each; an engine that serves steps of all sizes would fill the
1,024 places that there are otherwise."""
