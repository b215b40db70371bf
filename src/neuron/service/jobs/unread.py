"""Jobs as the service reads them: all but the conversation, which only the text process looks at.

Reading megabytes of messages would hold up every stream of the node. What is not read here stays
as it arrived, so that the job can be handed on whole.
"""

import msgspec

from protocol import codec
from protocol.generate import GenerateRequest
from protocol.job import Job


class UnreadRequest(GenerateRequest, frozen=True, omit_defaults=True):
    """A request whose messages or prompt are the bytes that arrived."""

    messages: msgspec.Raw = msgspec.Raw(b"[]")  # type: ignore[assignment]
    prompt: msgspec.Raw = msgspec.Raw(b"null")  # type: ignore[assignment]


class UnreadJob(Job, frozen=True, omit_defaults=True):
    """A job with such a request; its JSON is that of the job."""

    request: UnreadRequest


class _UnreadRender(msgspec.Struct, frozen=True):
    request: UnreadRequest


read_unread_job = codec.Reader[UnreadJob](UnreadJob)
_read_unread_render = codec.Reader[_UnreadRender](_UnreadRender)


def model_of_render(data: bytes) -> str:
    """The model that a ``Render`` is about. Raises ``UnreadableMessage``."""
    return _read_unread_render(data).request.model
