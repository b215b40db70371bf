"""An hour of everything at once: what every process takes of memory stays what it was.

``LONG_RUN_SECONDS=600 bin/test -n0 -m slow tests/fleet/test_long_run.py -s`` is the short form.
"""

import contextlib
import json
import os
import random
import statistics
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.up import Up, running_up

pytestmark = pytest.mark.xdist_group("wall_clock")

SECONDS = float(os.environ.get("LONG_RUN_SECONDS", "3600"))
CLIENTS = 6
PACE_SECONDS = 0.3
"""Between two requests of one client. What is kept for a while after an answer depends on how many
there were, so that a machine with other work, too, must have as many in every minute."""
SAMPLE_SECONDS = 5.0
WARM_UP = 0.25
"""Share of the run that does not count."""
GROWTH = 0.01
"""By how much the last third may exceed the first one of what counts."""
LEAST_BYTES = 256 << 10
"""Less than this is no growth: a page here and there."""
KINDS = {
    "nats-server": "nats-server",
    "-m cortex up": "up",
    "-m cortex serve": "gateway",
    "-m neuron serve": "service",
    "-m neuron.engine": "engine",
    "neuron-forks": "fork server",
    "neuron-text": "text",
    "neuron.text_process": "text",
}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}


def private_bytes(pid: int) -> int:
    """What a process has of its own, in memory or swapped out."""
    with contextlib.suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in rollup[1:])
        names = ("Private_Clean", "Private_Dirty", "Swap")
        return sum(int(fields.get(name, "0 kB").split()[0]) << 10 for name in names)
    return 0


class Crowd:
    """Clients of all kinds."""

    def __init__(self, up: Up) -> None:
        self._url = up.url
        self._ends = time.monotonic() + SECONDS
        self.statuses: Counter[str] = Counter()

    def run(self, seed: int) -> None:
        chance = random.Random(seed)
        kinds: list[Callable[[random.Random], None]] = [
            self._stream,
            self._stream,
            self._whole,
            self._choices,
            self._responses,
            self._messages,
            self._tokenize,
            self._leave,
            self._mistake,
        ]
        while time.monotonic() < self._ends:
            kind, began = chance.choice(kinds), time.monotonic()
            try:
                kind(chance)
                self.statuses[f"{kind.__name__} ok"] += 1
            except (urllib.error.URLError, OSError, ValueError) as error:
                self.statuses[f"{kind.__name__} {error!r}"[:80]] += 1
            time.sleep(max(0.0, began + PACE_SECONDS - time.monotonic()))

    def _post(self, path: str, body: dict[str, Any], *, leaves: bool = False) -> bytes:
        request = urllib.request.Request(
            f"{self._url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: bytes = answer.read(100) if leaves else answer.read()
            return found

    def _chat(self, chance: random.Random, **more: Any) -> dict[str, Any]:
        words = " ".join(chance.choices(["what", "is", "17", "and", "25", "or", "so"], k=20))
        turns = [{"role": "user", "content": words}] * chance.choice((1, 1, 3))
        tokens = chance.choice((4, 16, 40))
        return {"model": "cortex-demo", "messages": turns, "max_tokens": tokens, **more}

    def _stream(self, chance: random.Random) -> None:
        assert b"[DONE]" in self._post(
            "/v1/chat/completions", self._chat(chance, stream=True, temperature=1.0)
        )

    def _whole(self, chance: random.Random) -> None:
        self._post("/v1/chat/completions", self._chat(chance, tools=[TOOL]))

    def _choices(self, chance: random.Random) -> None:
        self._post("/v1/chat/completions", self._chat(chance, n=3, logprobs=True))

    def _responses(self, chance: random.Random) -> None:
        text = self._chat(chance)["messages"][0]["content"]
        body = {"model": "cortex-demo", "input": text, "max_output_tokens": 20, "stream": True}
        self._post("/v1/responses", body)

    def _messages(self, chance: random.Random) -> None:
        self._post("/v1/messages", self._chat(chance))

    def _tokenize(self, chance: random.Random) -> None:
        self._post(
            "/tokenize", {"model": "cortex-demo", "prompt": "hello " * chance.randint(1, 90)}
        )

    def _leave(self, chance: random.Random) -> None:
        self._post("/v1/chat/completions", self._chat(chance, stream=True), leaves=True)

    def _mistake(self, chance: random.Random) -> None:
        with pytest.raises(urllib.error.HTTPError):
            self._post("/v1/chat/completions", self._chat(chance, temperature="hot"))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
def test_memory_is_flat(tmp_path: Path) -> None:
    samples: dict[str, list[int]] = defaultdict(list)
    with running_up(tmp_path / "data") as up:
        crowd = Crowd(up)
        clients = [threading.Thread(target=crowd.run, args=(seed,)) for seed in range(CLIENTS)]
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            time.sleep(SAMPLE_SECONDS)
            taken: Counter[str] = Counter({"up": private_bytes(up.process.pid)})
            for pid, command in up.children().items():
                kind = next((name for words, name in KINDS.items() if words in command), "others")
                taken[kind] += private_bytes(pid)
            for kind, size in taken.items():
                samples[kind].append(size)
        failed = {what: count for what, count in crowd.statuses.items() if not what.endswith(" ok")}
        done = sum(crowd.statuses.values())
        sys.stdout.write(f"\n{done} requests in {SECONDS:.0f} s; {failed or 'none failed'}\n")
    grown = {}
    for kind, sizes in sorted(samples.items()):
        counted = sizes[round(len(sizes) * WARM_UP) :]
        third = len(counted) // 3
        first, last = statistics.median(counted[:third]), statistics.median(counted[-third:])
        growth = (last - first) / first if first else 0.0
        tenths = [sizes[round(len(sizes) * n / 10) :][: len(sizes) // 10] for n in range(10)]
        shown = " ".join(f"{statistics.median(tenth) / 1024:.0f}" for tenth in tenths)
        sys.stdout.write(f"{kind:12} {100 * growth:+.2f} %; kB in each tenth: {shown}\n")
        if growth > GROWTH and last - first > LEAST_BYTES:
            grown[kind] = growth
    assert not failed
    assert grown == {}
