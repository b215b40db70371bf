"""One full example of every message; the golden files hold their bytes."""

import msgspec

from protocol import catalogue, errors, fleet, frames, generate, job, orders

_ERROR = errors.WireError(
    errors.ErrorCode.CONTEXT_LENGTH_EXCEEDED, "too long", retry_after_seconds=3, param="messages"
)
_INFO = fleet.NodeInfo(
    node="beast",
    instance="0a1b2c3d4e5f",
    version="0.1.0",
    host="beast.lan",
    devices=(
        fleet.Device(fleet.DeviceKind.CPU, 0, "EPYC", 25_000_000_000),
        fleet.Device(
            fleet.DeviceKind.CUDA, 0, "H200", 150_000_000_000, "GPU-1", "9.0", driver="595.1"
        ),
    ),
)
_LIVE = fleet.NodeLive(
    node="beast",
    instance="0a1b2c3d4e5f",
    usage=(fleet.DeviceUsage(fleet.DeviceKind.CUDA, 0, 1 << 30, 97, 61, 412.5),),
    draining=True,
)
_MODEL = fleet.ModelRecord(
    node="beast",
    instance="0a1b2c3d4e5f",
    model="Qwen/Qwen3-8B",
    state=fleet.ModelState.FAILED,
    progress=fleet.Progress("reading", 1, 2),
    error=_ERROR,
    retry_seconds=4.5,
    revision="abc",
    context_limit=40960,
    slots=8,
    memory_bytes=1 << 34,
    numerics="engine 1, torch 2.13.0, cuda sm_90, bfloat16",
)

_JOB = job.Job(
    id="00112233445566778899aabbccddeeff",
    gateway="gw-1",
    request=generate.GenerateRequest(
        model="Qwen/Qwen3-8B",
        messages=(
            generate.Message(generate.Role.SYSTEM, "Be brief."),
            generate.Message(
                generate.Role.ASSISTANT,
                "",
                reasoning="hm",
                tool_calls=(generate.ToolCall("call_1", "get_weather", '{"city":"Oslo"}'),),
            ),
            generate.Message(generate.Role.TOOL, "sunny", tool_call_id="call_1"),
            generate.Message(generate.Role.USER, "Grüße 🎉"),
        ),
        tools=(generate.Tool("get_weather", "tells it", msgspec.Raw(b'{"type":"object"}')),),
        sampling=generate.Sampling(
            temperature=0.5,
            top_k=20,
            top_p=0.95,
            min_p=0.1,
            max_tokens=100,
            min_tokens=2,
            stop=("END",),
            stop_token_ids=(7,),
            ignore_eos=True,
        ),
        template_options={"enable_thinking": False},
    ),
    seed=42,
    rendered_at=1700000000.5,
    attempt=2,
    choice=1,
    tokens_so_far=(1, 2, 3),
    priority=job.Priority.HIGH,
    deadline_ms=60_000,
    revision="abc",
    prompt_hash="ff00",
    suspect=True,
    client=job.Client(owner="0123", created=1700000001, include_usage=True, model="fast"),
)

_PROFILE = catalogue.Profile(
    id="Qwen/Qwen3-8B",
    aliases=("fast", "claude-*"),
    source="/models/qwen",
    revision="main",
    harness="candle",
    dtype="bfloat16",
    quant="int8",
    min_devices=2,
    min_device_vram_mb=10_000,
    vram_mb=19_000,
    pinned_on=("beast",),
    nodes=("beast", "gpu-2"),
    residency_priority=500,
    min_replicas=1,
    max_replicas=2,
    idle_seconds=600.0,
    slots=16,
    kv_cache_mb=4096,
    limit=catalogue.Limits(32768, 4096),
    sampling=catalogue.SamplingDefaults(0.7, 0.9, 20, 0.05, 1000),
)

EXAMPLES: dict[str, msgspec.Struct] = {
    "load_order": orders.LoadOrder("Qwen/Qwen3-8B", "/models/qwen"),
    "unload_order": orders.UnloadOrder("Qwen/Qwen3-8B", 30.0),
    "order_reply": orders.OrderReply(_ERROR),
    "catalogue_record": catalogue.CatalogueRecord(
        "0a1b2c3d4e5f", _PROFILE, catalogue.Origin.OPERATOR
    ),
    "job": _JOB,
    "cancel": job.Cancel(attempt=2),
    "resume": job.Resume(attempt=2, index=5, gateway="gw-1"),
    "find": job.Find(gateway="gw-2"),
    "found": job.Found(node="beast", instance="0a1b2c3d4e5f", attempt=2, next_index=7),
    "take": job.Take(gateway="gw-2", attempt=3, owner="0123"),
    "taken": job.Taken(_JOB),
    "accepted": frames.Accepted(
        attempt=2,
        instance="0a1b2c3d4e5f",
        node="beast",
        prompt_tokens=100,
        prompt_hash="ff00",
        revision="abc",
        numerics="torch-2.13.0 cpu",
        max_tokens=400,
        ack="$JS.ACK.JOBS.x",
    ),
    "delta": frames.Delta(
        attempt=2,
        instance="0a1b2c3d4e5f",
        index=5,
        tokens=(1, 2),
        choice=1,
        cached_tokens=16,
        parts=(
            frames.Reasoning("so"),
            frames.Text("Hi 🎉"),
            frames.ToolCallPart(0, "call_1", "get_weather", '{"city"'),
        ),
    ),
    "keep_alive": frames.KeepAlive(
        attempt=2,
        instance="0a1b2c3d4e5f",
        next_index=7,
        phase=frames.Phase.PREFILL,
        done=512,
        total=1500,
        step_age_seconds=0.25,
    ),
    "finished": frames.Finished(
        attempt=2,
        instance="0a1b2c3d4e5f",
        next_index=7,
        reason=generate.FinishReason.STOP,
        usage=generate.Usage(100, 7, 16, 2),
        timings=generate.Timings(0.5, 1.5, 2.5),
        stop_text="END",
    ),
    "failed": frames.Failed(
        attempt=2,
        instance="0a1b2c3d4e5f",
        node="beast",
        error=_ERROR,
        retryable=True,
        ack="$JS.ACK.x",
    ),
    "busy": frames.Busy(attempt=2, instance="0a1b2c3d4e5f", node="beast"),
    "node_info": _INFO,
    "node_live": _LIVE,
    "model_record": _MODEL,
    "node_heartbeat": fleet.NodeHeartbeat(
        "beast",
        "0a1b2c3d4e5f",
        {"Qwen/Qwen3-8B": fleet.ModelLoad(1, 2, 6, step_seconds=0.02, idle_seconds=0.5)},
        draining=True,
    ),
    "gateway_heartbeat": fleet.GatewayHeartbeat("gw-1", "0a1b2c3d4e5f"),
    "describe": fleet.Describe(_INFO, _LIVE, (_MODEL,)),
}
