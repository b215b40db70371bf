"""llama.cpp as a contestant, by way of llama-cpp-python's bindings of its C interface.

Batched decoding as its own ``llama-batched-bench`` does it: one context with a KV stream for each
sequence, all rows in one ``llama_decode``. The next token is numpy's argmax, which is quicker than
llama.cpp's greedy sampler; top-p is llama.cpp's own sampler chain.
"""

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from bench.engine.checkpoint import gguf_path
from bench.engine.loads import Kind, Request, Trace
from bench.engine.peer import Contestant, Settings

BATCH_TOKENS = 512
"""llama.cpp's own default of ``n_ubatch``."""
SPARE_TOKENS = 8


class Llama:
    """One model; a context for each call, made outside the time that is measured."""

    kinds = frozenset((Kind.PREFILL, Kind.DECODE, Kind.PREFIX))

    def __init__(self, contestant: Contestant, settings: Settings) -> None:
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        path = gguf_path(Path(settings.model_dir), contestant.dtype)
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}; see the log")
        self._threads = settings.threads
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        system = llama_cpp.llama_print_system_info().decode().strip()
        self.about = f"llama-cpp-python {llama_cpp.__version__}, {path.name}: {system}"

    def decode(self, prompts: list[list[int]], steps: int, *, sampled: bool) -> list[float]:
        length = max(len(prompt) for prompt in prompts) + steps + SPARE_TOKENS
        with self._context(length, len(prompts)) as context:
            tokens = [context.extend(i, prompt, 0) for i, prompt in enumerate(prompts)]
            sampler = _sampler() if sampled else None
            taken = []
            for step in range(steps):
                began = time.perf_counter()
                context.decode(
                    [(i, token, len(prompts[i]) + step, True) for i, token in enumerate(tokens)]
                )
                tokens = [context.choose(i, sampler) for i in range(len(tokens))]
                taken.append(time.perf_counter() - began)
            if sampler is not None:
                llama_cpp.llama_sampler_free(sampler)
        return taken

    def serve(self, requests: list[Request]) -> list[Trace]:
        """One after the other; each keeps what it shares with the one before, as a slot would."""
        length = max(len(r.prompt) + r.max_tokens for r in requests) + SPARE_TOKENS
        traces: list[Trace] = []
        held: list[int] = []
        with self._context(length, 1) as context:
            start = time.perf_counter()
            for request in requests:
                trace = Trace(time.perf_counter() - start)
                shared = _shared(held, request.prompt[:-1])
                context.cut(0, shared)
                token = context.extend(0, request.prompt[shared:], shared)
                trace.times.append(time.perf_counter() - start)
                held = list(request.prompt)
                for _ in range(request.max_tokens - 1):
                    context.decode([(0, token, len(held), True)])
                    held.append(token)
                    token = context.choose(0, None)
                    trace.times.append(time.perf_counter() - start)
                traces.append(trace)
        return traces

    @contextmanager
    def _context(self, length: int, sequences: int) -> Iterator["_Context"]:
        parameters = llama_cpp.llama_context_default_params()
        padded = -(-length // 256) * 256
        parameters.n_ctx = padded * sequences
        parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.kv_unified = False
        handle = llama_cpp.llama_init_from_model(self._model, parameters)
        if not handle:
            raise RuntimeError("llama.cpp cannot make a context; see the log")
        context = _Context(handle, self._vocab)
        try:
            # Once through the graph, as every server does before its first request.
            context.decode([(0, 1, 0, True), (0, 2, 1, True)])
            context.cut(0, 0)
            yield context
        finally:
            context.free()


class _Context:
    """KV streams and a batch."""

    def __init__(self, handle: Any, vocab: int) -> None:
        self._handle, self._vocab = handle, vocab
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Computes *rows* of (sequence, token, position, whether its logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (sequence, token, position, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        code = llama_cpp.llama_decode(self._handle, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")

    def extend(self, sequence: int, tokens: list[int], position: int) -> int:
        """Computes *tokens* from *position* on; returns the token that follows them."""
        for begin in range(0, len(tokens), BATCH_TOKENS):
            part = tokens[begin : begin + BATCH_TOKENS]
            last = len(part) - 1 if begin + len(part) == len(tokens) else -1
            self.decode(
                [(sequence, t, position + begin + i, i == last) for i, t in enumerate(part)]
            )
        return self.choose(last, None)

    def choose(self, row: int, sampler: Any) -> int:
        """The next token after *row* of the last batch."""
        if sampler is not None:
            return int(llama_cpp.llama_sampler_sample(sampler, self._handle, row))
        logits = llama_cpp.llama_get_logits_ith(self._handle, row)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab,)).argmax())

    def cut(self, sequence: int, length: int) -> None:
        """Forgets what *sequence* has beyond *length* tokens."""
        memory = llama_cpp.llama_get_memory(self._handle)
        llama_cpp.llama_memory_seq_rm(memory, sequence, length, -1)

    def free(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._handle)


def _shared(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _sampler() -> Any:
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for part in (
        llama_cpp.llama_sampler_init_top_p(ctypes.c_float(0.95), 1),
        llama_cpp.llama_sampler_init_temp(ctypes.c_float(1.0)),
        llama_cpp.llama_sampler_init_dist(1),
    ):
        llama_cpp.llama_sampler_chain_add(chain, part)
    return chain
