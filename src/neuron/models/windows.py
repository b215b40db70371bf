"""How far back each layer sees, from what a config.json says about it.

Owns the meaning of ``layer_types``. A window counts positions, the token itself included; None
sees everything. Torch-free.
"""

from neuron.models.errors import contradiction, unsupported

FULL, SLIDING = "full_attention", "sliding_attention"
Windows = tuple[int | None, ...]


def typed_windows(types: list[str], layers: int, window: int | None) -> Windows:
    """*window* in the layers that *types* calls sliding.

    Raises LoadError: CORRUPT for a contradiction, UNSUPPORTED for other types of layers.
    """
    if len(types) != layers:
        raise contradiction(f"it names {len(types)} layer_types for {layers} layers")
    unknown = sorted(set(types) - {FULL, SLIDING})
    if unknown:
        raise unsupported(
            f"it has layers of type {', '.join(unknown)}", f"Supported: {FULL}, {SLIDING}."
        )
    if window is None and SLIDING in types:
        raise contradiction(f"it has {SLIDING} layers but no sliding_window in use")
    return tuple(window if kind == SLIDING else None for kind in types)


def upper_windows(first: int, layers: int, window: int | None) -> Windows:
    """*window* in the layers from *first* on."""
    return tuple(window if layer >= first else None for layer in range(layers))


def patterned_types(every: int, layers: int) -> list[str]:
    """Layer types of which each *every*-th is full. Raises LoadError CORRUPT for ``every < 1``."""
    if every < 1:
        raise contradiction(f"sliding_window_pattern is {every}")
    return [SLIDING if (layer + 1) % every else FULL for layer in range(layers)]
