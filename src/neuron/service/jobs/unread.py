"""Jobs as the service reads them: without what may be long, which only the text process looks at.

Reading megabytes of messages would hold up every stream of the node. What is not read here stays
as it arrived, so that the job can be handed on whole.
"""

import msgspec

from protocol import codec
from protocol.generate import GenerateRequest, Sampling
from protocol.job import Job

_EMPTY = msgspec.Raw(b"[]")


class UnreadSampling(Sampling, frozen=True, omit_defaults=True):
    """Sampling whose lists are the bytes that arrived."""

    stop: msgspec.Raw = _EMPTY  # type: ignore[assignment]
    stop_token_ids: msgspec.Raw = _EMPTY  # type: ignore[assignment]
    logit_bias: msgspec.Raw = _EMPTY  # type: ignore[assignment]
    allowed_token_ids: msgspec.Raw = _EMPTY  # type: ignore[assignment]


class UnreadRequest(GenerateRequest, frozen=True, omit_defaults=True):
    """A request whose messages or prompt are the bytes that arrived."""

    messages: msgspec.Raw = _EMPTY  # type: ignore[assignment]
    sampling: UnreadSampling = UnreadSampling()
    template_options: msgspec.Raw = msgspec.Raw(b"{}")  # type: ignore[assignment]
    prompt: msgspec.Raw = msgspec.Raw(b"null")  # type: ignore[assignment]


class UnreadJob(Job, frozen=True, omit_defaults=True):
    """A job with such a request; its JSON is that of the job."""

    request: UnreadRequest


class _UnreadRender(msgspec.Struct, frozen=True):
    request: UnreadRequest


read_unread_job = codec.Reader[UnreadJob](UnreadJob, codec.check_job)
_read_unread_render = codec.Reader[_UnreadRender](_UnreadRender)


def model_of_render(data: bytes) -> str:
    """The model that a ``Render`` is about. Raises ``UnreadableMessage``."""
    return _read_unread_render(data).request.model
