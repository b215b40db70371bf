"""The registry of dialects that the gateway speaks."""

from cortex.api.dialects.base import Dialect
from cortex.api.dialects.chat.decode import decode_chat
from cortex.api.dialects.chat.render import ChatAggregator, ChunkWriter
from cortex.api.dialects.completions.decode import decode_completion
from cortex.api.dialects.completions.render import CompletionAggregator, CompletionWriter
from cortex.api.dialects.messages.decode import decode_messages
from cortex.api.dialects.messages.render import EventWriter, MessageAggregator
from cortex.api.dialects.responses.decode import decode_responses
from cortex.api.dialects.responses.render import ResponseAggregator, ResponseWriter
from cortex.api.error_responses import Style

CHAT = Dialect("openai_chat", Style.OPENAI, decode_chat, ChunkWriter, ChatAggregator)
COMPLETIONS = Dialect(
    "openai_completions", Style.OPENAI, decode_completion, CompletionWriter, CompletionAggregator
)
RESPONSES = Dialect(
    "openai_responses", Style.OPENAI, decode_responses, ResponseWriter, ResponseAggregator
)
MESSAGES = Dialect(
    "anthropic_messages", Style.ANTHROPIC, decode_messages, EventWriter, MessageAggregator
)
DIALECTS = {dialect.name: dialect for dialect in (CHAT, COMPLETIONS, RESPONSES, MESSAGES)}
