"""Tells the person at the terminal what the models are doing, until they stop the fleet."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from cortex.gateway_client import GatewayClient, GatewayClientError, model_line
from cortex.local.supervisor import HopelessChild, Say

DEMO = "cortex-demo"
_POLL_SECONDS = 0.1
_SETTLED_POLL_SECONDS = 1.0


class Reporter:
    """Says what becomes of the models of one fleet."""

    def __init__(
        self, url: str, say: Say, *, loaded: Sequence[str], folders: Sequence[str], hints: str
    ) -> None:
        """*loaded* are the models that are loaded at the start, *folders* those of others; *hints*
        end the greeting."""
        self._url = url
        self._say = say
        self._loaded = loaded
        self._folders = folders
        self._hints = hints
        self._started = time.monotonic()

    async def run(self) -> None:
        """Reports what each model is doing, and prints the greeting when the first one answers;
        raises :class:`HopelessChild` when none ever can."""
        said: dict[str, str] = {}
        has_greeted = False
        pause = _POLL_SECONDS
        wanted = len(self._loaded)
        before: list[str] = []
        while True:
            listed = await asyncio.to_thread(_listed, self._url)
            if wanted and not self._folders:
                listed = [model for model in listed if model["nodes"]]
            for model in listed:
                line = model_line(model) if model["nodes"] else _offer_line(model)
                if said.get(model["id"]) != line:
                    said[model["id"]] = line
                    self._say(line)
            # Offers are complete once a look shows no more of them than the one before.
            ids = [model["id"] for model in listed]
            if not wanted and ids and ids == before and not has_greeted:
                has_greeted = True
                self._say(self._greeting(self._first_offer(listed)))
            before = ids
            ready = [model["id"] for model in listed if model["state"] == "ready"]
            failed = [model["id"] for model in listed if model["state"] == "failed"]
            if ready and not has_greeted:
                has_greeted = True
                self._say(self._greeting(ready[0]))
            if len(ready) + len(failed) >= wanted:
                if wanted and not has_greeted:
                    raise HopelessChild("No model could be loaded; see above.")
                pause = _SETTLED_POLL_SECONDS if has_greeted else _POLL_SECONDS
            await asyncio.sleep(pause)

    def _first_offer(self, listed: Sequence[dict[str, Any]]) -> str:
        """Names the first model that can be loaded on demand; raises when there is none."""
        offered = [model["id"] for model in listed if model["available_on"] and not model["error"]]
        if not offered:
            raise HopelessChild("None of these models can be loaded; see above.")
        if offered == [DEMO]:
            self._say(
                f"no model was found in {', '.join(self._folders)}; one is a folder "
                f"with config.json and *.safetensors. {DEMO} is offered instead."
            )
        return str(offered[0])

    def _greeting(self, model: str) -> str:
        question = "What is 17 + 25?" if "demo" in model else "Who are you?"
        body = json.dumps(
            {
                "model": model,
                "stream": True,
                "messages": [{"role": "user", "content": question}],
            }
        )
        return f"""
Ready after {time.monotonic() - self._started:.1f} s. Ask it something:

  curl -N {self._url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'

OpenAI clients:     OPENAI_BASE_URL={self._url}/v1 OPENAI_API_KEY=none
Anthropic clients:  ANTHROPIC_BASE_URL={self._url} ANTHROPIC_AUTH_TOKEN=none
Models:             {self._url}/v1/models
{self._hints}"""


def _listed(url: str) -> list[dict[str, Any]]:
    """Lists the models that nodes have or know, each under its own name; none while no gateway
    answers."""
    try:
        models = GatewayClient(url).models()
    except GatewayClientError:
        return []
    return [model for model in models if model["root"] == model["id"]]


def _offer_line(model: dict[str, Any]) -> str:
    """Says of a model that is not loaded whether it can be."""
    return str(model["error"] or f"{model['id']}: loaded on demand")
