"""The fleet as plain tables for the command line, made from what ``/fleet`` returns. Pure."""

from collections.abc import Iterator
from typing import Any

from cortex.gateway_client import aligned, state_text
from protocol.runtime.sizes import size_text

Json = dict[str, Any]
_LOADED = ("loading", "ready", "draining")


def status(fleet: Json) -> list[str]:
    """A few lines: who is the placer, what is running, what waits."""
    nodes = fleet["nodes"]
    loaded = [m for _, m in models_of(fleet) if m["record"]["state"] in _LOADED]
    running = sum(m["load"].get("running", 0) for m in loaded)
    placer = fleet["placer"] or "nobody yet"
    own = " (this gateway)" if fleet["placer"] == fleet["gateway"] else ""
    lines = [
        f"gateway  {fleet['gateway']}",
        f"placer   {placer}{own}",
        f"nodes    {len(nodes)}: {', '.join(n['node'] for n in nodes) or '-'}",
        f"models   {len(loaded)} loaded, {running} requests running",
    ]
    for model, count in fleet["waiting"].items():
        lines.append(f"waiting  {count} for {model}")
    lines += [f"drained  {node['node']}" for node in nodes if node["is_draining"]]
    lines += [f"unused   {node}: {why}" for node, why in fleet.get("unusable", {}).items()]
    lines += [f"trouble  {stream}: {why}" for stream, why in fleet.get("troubles", {}).items()]
    return lines


def ps(fleet: Json) -> list[str]:
    """The models that are loaded or loading."""
    rows = [("MODEL", "NODE", "STATE", "MEMORY", "RUNNING", "IDLE", "WHY")]
    for node, model in models_of(fleet):
        record, load = model["record"], model["load"]
        if record["state"] == "absent":
            continue
        slots = f"{load.get('running', 0)}/{record.get('slots', 0)}"
        idle = "-" if load.get("running") else f"{load.get('idle_seconds', 0):.0f} s"
        rows.append(
            (
                record["model"],
                node["node"],
                _state(record),
                size_text(record.get("reserved_bytes", 0) * max(1, len(record.get("devices", ())))),
                slots,
                idle,
                "pinned" if model["is_pinned"] else record.get("why", ""),
            )
        )
    return aligned(rows)


def nodes(fleet: Json) -> list[str]:
    """The memory of each device."""
    rows = [("NODE", "DEVICE", "FOR MODELS", "RESERVED", "OTHERS", "MODELS", "")]
    for node in fleet["nodes"]:
        loaded = [m["record"]["model"] for m in node["models"] if m["record"]["state"] in _LOADED]
        used = [d for d in node["devices"] if d.get("budget")]
        for number, device in enumerate(used):
            rows.append(
                (
                    node["node"] if number == 0 else "",
                    device["name"],
                    size_text(device["budget"]),
                    size_text(device["reserved"]),
                    size_text(device["others"]),
                    ", ".join(loaded) if number == 0 else "",
                    "drained" if node["is_draining"] and number == 0 else "",
                )
            )
    return aligned(rows)


def show(fleet: Json, model: str) -> list[str]:
    """Everything about one model; empty when no node knows it."""
    lines = []
    for node, found in models_of(fleet):
        record = found["record"]
        if record["model"] != model:
            continue
        lines.append(f"{model} on {node['node']}: {_state(record)}")
        facts = {
            "why": record.get("why"),
            "error": record.get("error", {}).get("message"),
            "files": _files(record),
            "context": record.get("context_limit"),
            "slots": record.get("slots"),
            "last load": f"{record['load_seconds']} s" if record.get("load_seconds") else None,
            "numerics": record.get("numerics"),
            "pinned": "yes" if found["is_pinned"] else None,
        }
        lines += [f"  {name:10} {value}" for name, value in facts.items() if value]
        for line in (record.get("estimate") or {}).get("lines", ()):
            lines.append(f"  memory     {line}")
        for place, turn in enumerate(node["eviction"], 1):
            if turn["model"] == model:
                verb = "never evicted" if turn.get("never") else f"number {place} on this node"
                lines.append(f"  eviction   {verb}: {turn['why']}")
    return lines


def plan(planned: Json) -> list[str]:
    """What a load would do."""
    lines = [f"{planned['model']}:"]
    lines += [f"  memory    {line}" for line in planned["memory"]]
    for number, fit in enumerate(planned["fits"]):
        verb = "would be loaded on" if number == 0 else "would fit on"
        order = ", in this order" * (len(fit["victims"]) > 1)
        goes = f"; {', '.join(fit['victims'])} would be evicted{order}" if fit["victims"] else ""
        files = "" if fit["has_files"] else "; its files would be fetched first"
        lines.append(
            f"  {verb} {fit['node']}{goes}; {size_text(fit['left_bytes'])} would be left{files}"
        )
    lines += [f"  not on {misfit['node']}: {misfit['why']}" for misfit in planned["misfits"]]
    return lines


def request(found: Json) -> list[str]:
    """What became of a request."""
    lines = [f"request {found['id']}: {found['outcome']}"]
    times = {
        "queued": found["queue_seconds"],
        "first token": found["first_token_seconds"],
        "total": found["seconds"],
    }
    facts = {
        "model": found["model"],
        "node": found["node"],
        "error": found["error"],
        **{name: f"{value:.3f} s" for name, value in times.items() if value is not None},
        "tokens": f"{found['prompt_tokens']} read ({found['cached_tokens'] or 0} cached), "
        f"{found['tokens']} written, {found['tokens_per_second']:.1f} per second",
        "moves": f"{found['moves']}, {found['continuity']}",
    }
    lines += [f"  {name:12} {value}" for name, value in facts.items() if value]
    lines += [f"  {'waited':12} {what}" for what in found["waited_for"]]
    if waiting := found.get("waiting"):
        seconds, left = waiting["seconds"], waiting["at_most_seconds"]
        lines.append(f"  {'waits':12} for {seconds:.0f} s, {left:.0f} s more at the latest")
    return lines


def event(record: Json) -> str:
    """One change of a model's state."""
    error = (record.get("error") or {}).get("message", "")
    return f"{record['model']} on {record['node']}: {_state(record)}{f': {error}' if error else ''}"


def models_of(fleet: Json) -> Iterator[tuple[Json, Json]]:
    """Pairs every model with its node."""
    return ((node, model) for node in fleet["nodes"] for model in node["models"])


def _files(record: Json) -> str:
    if record.get("is_warm"):
        return "here, and cached in host memory"
    return "here" if record.get("has_files") else "not here"


def _state(record: Json) -> str:
    return state_text({"state": record["state"], "progress": record.get("progress")})
