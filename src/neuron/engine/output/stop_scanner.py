"""Finds the first stop text in a stream of text and holds back no more than necessary.

Uses the automaton of Aho and Corasick (CACM 18, 1975): a state is the longest suffix of the text so
far that begins a stop text, which is exactly what must be held back. Each character is one
amortised step, whatever the number and length of the stop texts. Must not know tokens.
"""


class StopScanner:
    """Follows one text.

    The stop text that *ends* first wins; of those that end together, the one that starts first. The
    result is thus the same however the text is divided into tokens.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._match: list[str | None] = [None]  # the longest stop text that ends in this state
        for stop in stops:
            self._insert(stop)
        self._fallback = self._link()
        self._state = 0
        self._held = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """Takes more text; returns the text that is now certain, and the stop text if any.

        The certain text then ends right before the stop text, and nothing more may be pushed.
        """
        if len(self._next) == 1:
            return piece, None
        for index, character in enumerate(piece):
            state = self._state = self._step(character)
            match = self._match[state]
            if match is not None:
                text = self._held + piece[: index + 1]
                self._held = ""
                return text[: len(text) - len(match)], match
        text = self._held + piece
        certain = len(text) - self._depth[self._state]
        self._held = text[certain:]
        return text[:certain], None

    def flush(self) -> str:
        """Returns the held-back text at the end of the answer."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _step(self, character: str) -> int:
        state = self._state
        while character not in self._next[state]:
            if state == 0:
                return 0
            state = self._fallback[state]
        return self._next[state][character]

    def _insert(self, stop: str) -> None:
        state = 0
        for character in stop:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._match.append(None)
            state = self._next[state][character]
        self._match[state] = stop

    def _link(self) -> list[int]:
        """Maps each state to that of its longest proper suffix, breadth first."""
        fallback = [0] * len(self._next)
        order = [0]
        for state in order:
            for character, child in self._next[state].items():
                order.append(child)
                if state:
                    other = fallback[state]
                    while other and character not in self._next[other]:
                        other = fallback[other]
                    fallback[child] = self._next[other].get(character, 0)
                if self._match[child] is None:
                    self._match[child] = self._match[fallback[child]]
        return fallback
