"""Our engine as a contestant: in process, without the channel and the service around it."""

import time
from collections import deque
from collections.abc import Callable

import torch

from bench.engine.loads import Kind, Request, Trace
from bench.engine.peer import Contestant, Settings
from neuron.engine.engine import Engine
from neuron.engine.loader import load_engine
from neuron.ipc.messages import Add, SamplingParams, Start, Step

KV_BYTES_PER_TOKEN = 28 * 2 * 8 * 128 * 4
"""Of the benchmark's model in float32."""


class Ours:
    """The engine, driven step by step."""

    kinds = frozenset(Kind)

    def __init__(self, contestant: Contestant, settings: Settings) -> None:
        self._engine, ready = load_engine(
            Start(
                settings.model_dir,
                dtype=contestant.dtype,
                exact=contestant.exact,
                max_running=32,
                max_context=settings.max_context,
                kv_cache_bytes=settings.kv_tokens * KV_BYTES_PER_TOKEN,
                threads=settings.threads,
            ),
            lambda _: None,
        )
        self._context = ready.context_limit
        self._next = 0
        self.about = f"{ready.numerics}, exact {ready.exact}, torch {torch.__version__}"
        if ready.notes:
            self.about += f" ({'; '.join(ready.notes)})"

    def decode(self, prompts: list[list[int]], steps: int, *, sampled: bool) -> list[float]:
        heat, top_p = (1.0, 0.95) if sampled else (0.0, 1.0)
        ids = []
        for prompt in prompts:
            # As much as there is room for: the first ones go on while the last are prefilled.
            room = self._context - len(prompt)
            ids.append(self._add(prompt, SamplingParams(room, temperature=heat, top_p=top_p)))
        waiting = set(ids)
        while waiting:
            waiting -= {output.id for output in self._engine.step().outputs}
        taken = []
        for _ in range(steps):
            began = time.perf_counter()
            step = self._engine.step()
            taken.append(time.perf_counter() - began)
            if len(step.outputs) != len(prompts) or step.tokens != len(prompts):
                raise RuntimeError(f"not a full decode step: {step.tokens} tokens")
        for sequence in ids:
            self._engine.abort(sequence)
        return taken

    def serve(self, requests: list[Request]) -> list[Trace]:
        return _Service(self._engine, self._add).run(requests)

    def _add(self, prompt: list[int], sample: SamplingParams) -> int:
        self._next += 1
        refused = self._engine.add(Add(self._next, prompt, sample))
        if refused is not None:
            raise RuntimeError(refused.message)
        return self._next


class _Service:
    """One call of ``serve``."""

    def __init__(self, engine: Engine, add: Callable[[list[int], SamplingParams], int]) -> None:
        self._engine, self._add = engine, add
        self._traces: dict[int, Trace] = {}

    def run(self, requests: list[Request]) -> list[Trace]:
        pending, start = deque(requests), time.perf_counter()
        while pending or self._engine.has_work:
            now = time.perf_counter() - start
            while pending and self._is_due(pending[0], now):
                request = pending.popleft()
                number = self._add(request.prompt, SamplingParams(request.max_tokens))
                self._traces[number] = Trace(request.arrival_seconds or now)
            if self._engine.has_work:
                step = self._engine.step()
                self._note(step, time.perf_counter() - start)
            else:
                time.sleep(max(0.0, (pending[0].arrival_seconds or 0.0) - now))
        return list(self._traces.values())

    def _is_due(self, request: Request, now: float) -> bool:
        if request.arrival_seconds is None:
            return not self._engine.has_work
        return request.arrival_seconds <= now

    def _note(self, step: Step, now: float) -> None:
        for output in step.outputs:
            self._traces[output.id].times += [now] * len(output.tokens)
