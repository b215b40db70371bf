"""All dialects that the gateway speaks."""

from cortex.api.dialects.base import Dialect
from cortex.api.dialects.chat.decode import decode_chat
from cortex.api.dialects.chat.render import ChatFolder, ChunkWriter
from cortex.api.dialects.completions.decode import decode_completion
from cortex.api.dialects.completions.render import CompletionFolder, CompletionWriter
from cortex.api.dialects.messages.decode import decode_messages
from cortex.api.dialects.messages.render import EventWriter, MessageFolder
from cortex.api.dialects.responses.decode import decode_responses
from cortex.api.dialects.responses.render import ResponseFolder, ResponseWriter
from cortex.api.errors import Style

CHAT = Dialect("openai_chat", Style.OPENAI, decode_chat, ChunkWriter, ChatFolder)
COMPLETIONS = Dialect(
    "openai_completions", Style.OPENAI, decode_completion, CompletionWriter, CompletionFolder
)
RESPONSES = Dialect(
    "openai_responses", Style.OPENAI, decode_responses, ResponseWriter, ResponseFolder
)
MESSAGES = Dialect(
    "anthropic_messages", Style.ANTHROPIC, decode_messages, EventWriter, MessageFolder
)
DIALECTS = {dialect.name: dialect for dialect in (CHAT, COMPLETIONS, RESPONSES, MESSAGES)}
