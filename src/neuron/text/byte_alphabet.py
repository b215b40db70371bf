"""The alphabet in which byte-level vocabularies write bytes, from GPT-2."""


def _byte_characters() -> tuple[str, ...]:
    """Printable bytes stand for themselves, the others for the characters from U+0100 on, in
    order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    names = {byte: chr(byte) for byte in plain} | {
        byte: chr(0x100 + number) for number, byte in enumerate(others)
    }
    return tuple(names[byte] for byte in range(0x100))


BYTE_LEVEL_ALPHABET = _byte_characters()
"""The character of each byte."""
