"""Sizes in bytes: their units, and their form for people."""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


def size_text(count: int | float) -> str:
    """Formats a size in bytes for people, in the largest unit that yields at least one."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= size:
            return f"{count / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{count:.0f} bytes"
