"""transformers' continuous batching as a contestant, through its public manager.

Every call starts a manager of its own, outside the time that is measured: it holds a KV cache of
just the size that the call needs, and nothing that an earlier one has left.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from bench.engine.loads import Kind, Request, Trace
from bench.engine.peer import Contestant, Settings
from bench.engine.transformers_peer import load_model

PAGE_TOKENS = 256
"""transformers' own default."""
BATCH_TOKENS = 512
"""Of a step, at most. Its attention is dense over step x cache: more is slower on a CPU."""
EXTRA_TOKENS = 256
"""What the first sequences of a batch may run ahead of the last ones."""
POLL_SECONDS = 5.0


class Continuous:
    """A manager thread generates; this one waits for tokens and notes the time."""

    kinds = frozenset(Kind)

    def __init__(self, contestant: Contestant, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self._threads = settings.threads
        self._model = load_model(contestant.dtype, settings)
        self.about = (
            f"transformers {transformers.__version__}, pages of {PAGE_TOKENS}, steps of up to "
            f"{BATCH_TOKENS} tokens, sdpa, torch {torch.__version__}"
        )

    def decode(self, prompts: list[list[int]], steps: int, *, sampled: bool) -> list[float]:
        most = EXTRA_TOKENS + steps
        with self._manager([len(p) + most for p in prompts], sampled=sampled) as manager:
            ids = [_add(manager, prompt, most) for prompt in prompts]
            waiting = set(ids)
            ends: list[float] = []
            while len(ends) < steps + 1:
                result = _next(manager)
                waiting.discard(result.request_id)
                # The outputs of a step arrive together; the last row's marks its end.
                if not waiting and result.request_id == ids[-1]:
                    ends.append(time.perf_counter())
        return [after - before for before, after in pairwise(ends)]

    def serve(self, requests: list[Request]) -> list[Trace]:
        lengths = [len(r.prompt) + r.max_tokens for r in requests]
        with self._manager(lengths, sampled=False) as manager:
            return _Service(manager).run(requests)

    @contextmanager
    def _manager(self, lengths: list[int], *, sampled: bool) -> Iterator[Any]:
        """A running manager with room for sequences of *lengths* tokens."""
        pages = sum(-(-length // PAGE_TOKENS) + 1 for length in lengths) + 4
        config = GenerationConfig(do_sample=False, eos_token_id=-1)
        if sampled:
            config = GenerationConfig(
                do_sample=True, temperature=1.0, top_p=0.95, top_k=0, eos_token_id=-1
            )
        with torch.inference_mode():
            manager = self._model.init_continuous_batching(
                generation_config=config,
                continuous_batching_config=ContinuousBatchingConfig(
                    page_size=PAGE_TOKENS, num_blocks=pages, max_batch_tokens=BATCH_TOKENS
                ),
            )
            manager.start()
        try:
            # The thread makes its cache before the first request: that is no part of any answer.
            _add(manager, [1, 2, 3, 4], 2)
            while not _next(manager).is_finished():
                pass
            yield manager
        finally:
            manager.stop(block=True, hard_stop=True)


class _Service:
    """One call of ``serve``; a second thread sends the requests when they are due."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._traces: dict[str, Trace] = {}
        self._open = 0
        self._idle = threading.Condition()
        self._start = time.perf_counter()

    def run(self, requests: list[Request]) -> list[Trace]:
        sender = threading.Thread(target=self._send, args=(requests,), daemon=True)
        sender.start()
        for _ in range(sum(request.max_tokens for request in requests)):
            result = _next(self._manager)
            now = time.perf_counter() - self._start
            self._traces[result.request_id].times.append(now)
            if result.is_finished():
                with self._idle:
                    self._open -= 1
                    self._idle.notify()
        sender.join()
        return list(self._traces.values())

    def _send(self, requests: list[Request]) -> None:
        for index, request in enumerate(requests):
            if request.arrival_seconds is None:
                with self._idle:
                    self._idle.wait_for(lambda: not self._open)
            else:
                ahead = self._start + request.arrival_seconds - time.perf_counter()
                time.sleep(max(0.0, ahead))
            now = time.perf_counter() - self._start
            name = f"served-{index}"
            self._traces[name] = Trace(request.arrival_seconds or now)
            with self._idle:
                self._open += 1
            _add(self._manager, request.prompt, request.max_tokens, name)


def _add(manager: Any, prompt: list[int], count: int, name: str | None = None) -> str:
    added = manager.add_request(
        prompt, request_id=name, max_new_tokens=count, streaming=True, eos_token_id=-1
    )
    assert isinstance(added, str)
    return added


def _next(manager: Any) -> Any:
    """The next token of any request. Raises RuntimeError when the manager has died."""
    while True:
        result = manager.get_result(timeout=POLL_SECONDS)
        if result is None:
            if not manager.is_running():
                raise RuntimeError("the manager's thread has ended; see the log")
        elif result.error:
            raise RuntimeError(result.error)
        else:
            return result
