"""transformers' ``generate`` as a contestant: static batches, SDPA attention, dynamic cache."""

import time
from itertools import pairwise
from typing import Any

import torch
import transformers

from bench.engine.loads import Kind, Request, Trace
from bench.engine.peer import Contestant, Settings


class Generate:
    """One static batch at a time; so no arrivals and no shared beginnings."""

    kinds = frozenset((Kind.PREFILL, Kind.DECODE))

    def __init__(self, contestant: Contestant, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self._model = load_model(contestant.dtype, settings)
        self.about = f"transformers {transformers.__version__}, sdpa, torch {torch.__version__}"

    def decode(self, prompts: list[list[int]], steps: int, *, sampled: bool) -> list[float]:
        options = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0}
        times = self._generate(prompts, steps + 1, options if sampled else {"do_sample": False})
        return [after - before for before, after in pairwise(times)]

    def serve(self, requests: list[Request]) -> list[Trace]:
        traces, start = [], time.perf_counter()
        for request in requests:
            began = time.perf_counter()
            times = self._generate([request.prompt], request.max_tokens, {"do_sample": False})
            traces.append(Trace(began - start, [t - start for t in times]))
        return traces

    @torch.inference_mode()
    def _generate(
        self, prompts: list[list[int]], count: int, options: dict[str, Any]
    ) -> list[float]:
        clock = _Clock()
        ids = torch.tensor(prompts)
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            pad_token_id=0,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
            **options,
        )
        return clock.times


class _Clock(transformers.StoppingCriteria):  # type: ignore[misc]  # untyped base
    """Stops nothing; notes when each token of the batch was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def load_model(dtype: str, settings: Settings) -> Any:
    """The checkpoint as a transformers model without end tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        settings.model_dir, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).eval()
    model.generation_config.eos_token_id = None
    return model
