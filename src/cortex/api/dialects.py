"""All dialects that the gateway speaks."""

from cortex.api.chat.decode import decode_chat
from cortex.api.chat.render import ChatFolder, ChunkWriter
from cortex.api.dialect import Dialect
from cortex.api.errors import Style
from cortex.api.messages.decode import decode_messages
from cortex.api.messages.render import EventWriter, MessageFolder

CHAT = Dialect("openai_chat", Style.OPENAI, decode_chat, ChunkWriter, ChatFolder)
MESSAGES = Dialect(
    "anthropic_messages", Style.ANTHROPIC, decode_messages, EventWriter, MessageFolder
)
DIALECTS = {dialect.name: dialect for dialect in (CHAT, MESSAGES)}
