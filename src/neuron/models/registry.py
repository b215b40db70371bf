"""Which class builds which architecture.

To add one: a member of :class:`~neuron.models.config.Architecture`, a module here beside
``qwen3.py``, and a line in :func:`model_class`.
"""

from typing import assert_never

from neuron.models.config import Architecture
from neuron.models.qwen3 import Qwen3


def model_class(architecture: Architecture) -> type[Qwen3]:
    """The module class of *architecture*; every class has the interface of :class:`Qwen3`."""
    match architecture:
        case Architecture.QWEN3:
            return Qwen3
        case _:
            assert_never(architecture)
