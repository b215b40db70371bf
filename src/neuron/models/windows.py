"""How far back each layer sees, according to config.json.

Owns the meaning of ``layer_types``. A window counts positions, including the token itself; None
sees everything. No torch.
"""

from neuron.models.errors import contradiction, unsupported

FULL, SLIDING = "full_attention", "sliding_attention"
Windows = tuple[int | None, ...]


def typed_windows(types: list[str], layers: int, window: int | None) -> Windows:
    """*window* in the layers that *types* calls sliding, None in the others.

    Raises LoadError: CORRUPT for a contradiction, UNSUPPORTED for other types of layers.
    """
    if len(types) != layers:
        raise contradiction(f"it lists {len(types)} layer_types for {layers} layers")
    unknown = sorted(set(types) - {FULL, SLIDING})
    if unknown:
        raise unsupported(
            f"it has layers of type {', '.join(unknown)}", f"Supported: {FULL}, {SLIDING}."
        )
    if window is None and SLIDING in types:
        raise contradiction(f"it has {SLIDING} layers, but no sliding_window is in use")
    return tuple(window if kind == SLIDING else None for kind in types)


def upper_windows(first: int, layers: int, window: int | None) -> Windows:
    """*window* in the layers from *first* on, None in those below."""
    return tuple(window if layer >= first else None for layer in range(layers))


def patterned_types(every: int, layers: int) -> list[str]:
    """Layer types, every *every*-th of them full. Raises LoadError CORRUPT for ``every < 1``."""
    if every < 1:
        raise contradiction(f"sliding_window_pattern is {every}, which is below 1")
    return [SLIDING if (layer + 1) % every else FULL for layer in range(layers)]
