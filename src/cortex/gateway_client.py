"""A client of a running gateway for the command line, over the HTTP that everybody uses."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

TIMEOUT_SECONDS = 10.0


class GatewayClientError(Exception):
    """Raised when the gateway cannot be reached or refuses; one line for people."""


class GatewayClient:
    """Speaks to the gateway at *url*."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def models(self) -> list[dict[str, Any]]:
        """Returns the entries of ``/v1/models``."""
        entries: list[dict[str, Any]] = self._call("/v1/models")["data"]
        return entries

    def fleet(self) -> dict[str, Any]:
        """Returns ``/fleet``: nodes with their devices and models, and the demand for them."""
        return self._call("/fleet")

    def request(self, request_id: str) -> dict[str, Any]:
        """Returns what became of a request."""
        return self._call(f"/requests/{urllib.parse.quote(request_id, safe='')}")

    def tell(self, path: str, **body: Any) -> dict[str, Any]:
        """Sends an order to the fleet; empty fields are left out."""
        return self._call(path, {k: v for k, v in body.items() if v})

    def events(self) -> Iterator[dict[str, Any]]:
        """Yields the present states, then every change of a model's state, until the gateway
        ends."""
        try:
            with urllib.request.urlopen(f"{self._url}/fleet/events", timeout=30) as answer:
                for line in answer:
                    if line.startswith(b"data: "):
                        yield json.loads(line.removeprefix(b"data: "))
        except (OSError, ValueError) as error:
            raise GatewayClientError(f"lost the gateway at {self._url} ({error}).") from None

    def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            with error:
                raise GatewayClientError(_message(error)) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise GatewayClientError(
                f"no gateway answers at {self._url} ({reason}). Start one with 'cortex up', or "
                "name another one with --url URL."
            ) from None


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the gateway answered {error.code} {error.reason}"


def model_line(model: dict[str, Any]) -> str:
    """Renders one model of ``/v1/models`` for a person."""
    where = ", ".join(model["nodes"]) or "no node"
    line = f"{model['id']} on {where}: {state_text(model)}"
    return f"{line}: {model['error']}" if model["error"] else line


def state_text(model: dict[str, Any]) -> str:
    """Renders its state and progress."""
    progress = model["progress"]
    text = str(model["state"])
    if progress:
        text += f", {progress['stage']}"
        if progress.get("unit", "bytes") == "bytes" and progress["total"]:
            # Not a new line for every percent.
            text += f" {20 * (5 * progress['done'] // progress['total'])} %"
    return text


def table(models: list[dict[str, Any]]) -> list[str]:
    """Renders lines for people, with a heading."""
    rows = [("MODEL", "STATE", "NODES", "")]
    for model in models:
        notes = [f"alias of {model['root']}"] if model["root"] != model["id"] else []
        notes += [model["error"]] if model["error"] else []
        if not model["nodes"] and model["available_on"] and not model["error"]:
            notes.append(f"can be loaded on {', '.join(model['available_on'])}")
        nodes = ", ".join(model["nodes"]) or "-"
        rows.append((model["id"], state_text(model), nodes, "; ".join(notes)))
    return aligned(rows)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Aligns columns for people; the first row is the heading."""
    columns = len(rows[0])
    widths = [max(len(row[column]) for row in rows) for column in range(columns)]
    return ["  ".join(row[c].ljust(widths[c]) for c in range(columns)).rstrip() for row in rows]
