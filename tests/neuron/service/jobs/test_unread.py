"""A job that is read in part is the same job."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from neuron.service.jobs.unread import (
    UnreadJob,
    UnreadRequest,
    UnreadSampling,
    model_of_render,
    read_unread_job,
)
from protocol import codec
from protocol.generate import GenerateRequest, Message, Role, Sampling, Tool, ToolCall
from protocol.job import Client, Job
from protocol.render import Render

texts = st.text(max_size=20)
names = st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True)
calls = st.builds(ToolCall, texts, texts, texts)
messages = st.builds(
    Message, st.sampled_from(Role), texts, texts, st.lists(calls, max_size=2).map(tuple), texts
)
samplings = st.builds(
    Sampling,
    max_tokens=st.none() | st.integers(0, 9),
    stop=st.lists(texts, max_size=3).map(tuple),
    logit_bias=st.lists(st.tuples(st.integers(0, 9), st.floats(-1, 1)), max_size=3).map(tuple),
    logprobs=st.none() | st.integers(0, 5),
    include_stop=st.booleans(),
)
prompts = st.none() | texts | st.lists(st.integers(0, 99), max_size=5).map(tuple)
requests = st.builds(
    GenerateRequest,
    names,
    st.lists(messages, max_size=3).map(tuple),
    st.lists(st.builds(Tool, texts, texts), max_size=2).map(tuple),
    samplings,
    st.dictionaries(texts, st.booleans(), max_size=2),
    prompts,
    echo=st.booleans(),
    one_call=st.booleans(),
    call=st.none() | texts,
)
jobs = st.builds(
    Job,
    names,
    names,
    requests,
    st.integers(0, 99),
    st.floats(0, 1e9),
    tokens_so_far=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    client=st.none() | st.builds(Client, owner=texts),
)


@given(jobs)
def test_it_is_handed_on_as_it_arrived(job: Job) -> None:
    data = codec.encode(job)
    unread = read_unread_job(data)
    assert codec.read_job(codec.encode(unread)) == job
    request = codec.encode(unread.request)
    assert msgspec.json.decode(request, type=GenerateRequest) == job.request
    moved = msgspec.structs.replace(unread, gateway="other", attempt=9)
    expected = msgspec.structs.replace(job, gateway="other", attempt=9)
    assert codec.read_job(codec.encode(moved)) == expected


@given(jobs)
def test_what_the_service_looks_at_is_there(job: Job) -> None:
    unread = read_unread_job(codec.encode(job))
    assert unread.request.tools == job.request.tools
    for field in ("max_tokens", "logprobs", "include_stop"):
        assert getattr(unread.request.sampling, field) == getattr(job.request.sampling, field)
    for field in ("model", "echo", "one_call", "call"):
        assert getattr(unread.request, field) == getattr(job.request, field)
    assert unread.tokens_so_far == job.tokens_so_far
    assert model_of_render(codec.encode(Render(job.request, pieces=True))) == job.request.model


def test_no_field_is_lost() -> None:
    """A new one is in both, as they inherit it."""
    for unread, read in (
        (UnreadJob, Job),
        (UnreadRequest, GenerateRequest),
        (UnreadSampling, Sampling),
    ):
        assert set(unread.__struct_fields__) == set(read.__struct_fields__)
