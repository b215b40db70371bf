"""The life of a text process on its channel: load a model's texts, then answer until told to end.

Owns the loop. Answers one request after the other: the service decides which goes to which process
and knows at each moment whose request takes the time. It ends when the service closes the channel.
"""

import contextlib
import gc
import os
import socket
import sys
import time
import traceback
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, assert_never

from neuron.ipc.channel import ChannelClosed, TextEnd
from neuron.ipc.text_messages import (
    ListVocabulary,
    LoadText,
    Prepared,
    PrepareText,
    RenderedText,
    RenderText,
    TextAnswer,
    TextLoaded,
    TextRefused,
    TokenTexts,
    ToText,
    Working,
)
from neuron.text.prompt import TEMPLATE
from neuron.text.prompter import Prompter
from neuron.text.tokenizer import TOKENIZER_FILE
from neuron.text_process.limits import (
    LOAD_BYTES,
    LOAD_FILE_FACTOR,
    REQUEST_BYTES,
    CpuTimer,
    limit_memory,
    offer_to_the_kernel,
)
from protocol import codec
from protocol.errors import ErrorCode, FleetError, WireError
from protocol.generate import GenerateRequest
from protocol.render import Rendered
from protocol.runtime.malloc import give_back_memory
from protocol.runtime.sizes import size_text

OK, CRASHED = 0, 1
LARGE_BYTES = 1 << 20
"""After a request of this size, freed memory is given back at once."""
_REQUEST = codec.Reader[GenerateRequest](GenerateRequest)
_MAX_REASON_CHARS = 300
TOKEN_ARRAY = "I"
"""How token ids travel; see ``Prepared.tokens``."""


def run_text(connection: socket.socket) -> NoReturn:
    """Runs a text process from its first message to its end. *connection* leads to the service."""
    status = CRASHED
    try:
        offer_to_the_kernel()
        _TextServer(TextEnd(connection)).serve()
    except ChannelClosed:
        status = OK
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)  # without freeing what it has, which takes a while


class _Stages:
    """Tells the service what takes the time, and limits what templates take; a ``Watch``."""

    def __init__(self, channel: TextEnd) -> None:
        self._channel = channel
        self._timer = CpuTimer()
        self._of_templates = 0.0
        self.what = ""
        """What the process is working on."""

    def begin(self) -> None:
        """Begins another request."""
        self._of_templates = 0.0
        self.what = ""

    @contextlib.contextmanager
    def __call__(self, what: str, cpu_seconds: float, why: str) -> Iterator[None]:
        """See :class:`~neuron.text.prompt.Watch`."""
        if what == TEMPLATE:  # all renderings of a request share one budget
            left = max(0.001, cpu_seconds - self._of_templates)
            began = time.process_time()
            self._say(what, cpu_seconds, why)
            try:
                with self._timer.limit(left):
                    yield
            except Exception as error:  # whatever the template's code has made of the timer's
                if self._timer.went_off:
                    raise _too_slow(cpu_seconds) from error
                raise
            self._of_templates += time.process_time() - began
        else:
            self._say(what, cpu_seconds, why)
            yield

    def _say(self, what: str, cpu_seconds: float, why: str) -> None:
        self.what = what
        self._channel.send(Working(what, cpu_seconds, why))


class _TextServer:
    def __init__(self, channel: TextEnd) -> None:
        self._channel = channel
        self._stages = _Stages(channel)
        self._prompter: Prompter | None = None

    def serve(self) -> NoReturn:
        """Answers requests. Raises ``ChannelClosed`` when the service is gone."""
        while True:
            for message in self._channel.receive(wait=True):
                self._stages.begin()
                self._channel.send(self._answer(message))
                if isinstance(message, PrepareText) and len(message.request) > LARGE_BYTES:
                    give_back_memory()

    def _answer(self, message: ToText) -> TextAnswer:
        try:
            if isinstance(message, LoadText):
                return self._load(message)
            assert self._prompter is not None, "LoadText comes first"
            match message:
                case PrepareText():
                    return self._prepare(self._prompter, message)
                case RenderText():
                    return self._render(self._prompter, message)
                case ListVocabulary():
                    return TokenTexts(*self._prompter.vocabulary().packed)
                case _:
                    assert_never(message)
        except FleetError as error:
            return TextRefused(error.error)
        except MemoryError:
            return TextRefused(self._needs_too_much_memory(message).error)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # how a bug in Rust code looks
                raise
            return TextRefused(self._failed(str(error)), is_last=True)

    def _load(self, message: LoadText) -> TextLoaded:
        folder = Path(message.folder)
        file_bytes = _size(folder / TOKENIZER_FILE)
        limit_memory(_load_bytes(file_bytes))
        self._prompter = prompter = Prompter.load(folder, message.call_style, self._stages)
        gc.collect()
        gc.freeze()
        limit_memory(REQUEST_BYTES)
        return TextLoaded(prompter.call_style.value, prompter.marks, prompter.identity, file_bytes)

    def _prepare(self, prompter: Prompter, message: PrepareText) -> Prepared:
        request = _read_request(message.request)
        prompt = prompter.prepare(request, message.job)
        rendering = prompt.rendering
        return Prepared(
            tokens=array(TOKEN_ARRAY, rendering.tokens).tobytes(),
            hash=prompt.hash,
            sample=prompt.sample,
            text=rendering.text if request.echo else "",
            opens_thinking=rendering.opens_thinking,
            is_raw=rendering.is_raw,
            begun=rendering.begun,
        )

    @staticmethod
    def _render(prompter: Prompter, message: RenderText) -> RenderedText:
        try:
            asked = codec.read_render(message.asked)
        except (codec.UnreadableMessage, RecursionError) as error:
            raise _unreadable(error) from error
        found = prompter.render(asked.request, asked.rendered_at)
        pieces: tuple[str, ...] = ()
        if asked.pieces:
            texts = {
                token: prompter.tokenizer.token_bytes(token).decode(errors="replace")
                for token in set(found.tokens)
            }
            pieces = tuple(texts[token] for token in found.tokens)
        rendered = Rendered(tuple(found.tokens), found.text, pieces, message.context_limit)
        answer = codec.encode(rendered)
        if len(answer) > message.max_answer_bytes:
            raise _too_large(len(answer), message.max_answer_bytes)
        return RenderedText(answer)

    def _failed(self, why: str) -> WireError:
        what = self._stages.what or "request"
        return WireError(
            ErrorCode.INVALID_REQUEST,
            f"The {what} of the model failed on this request: {why[:_MAX_REASON_CHARS]}. Send "
            "another text; if all fail, the model's files are at fault.",
        )

    def _needs_too_much_memory(self, message: ToText) -> FleetError:
        what = self._stages.what or "request"
        if isinstance(message, LoadText):
            limit = _load_bytes(_size(Path(message.folder) / TOKENIZER_FILE))
            return FleetError(
                ErrorCode.INVALID_REQUEST,
                f"The model folder {message.folder} cannot be used: reading its {what} takes more "
                f"than {size_text(limit)} of memory. Correct that file or download the model "
                "again.",
                param="model",
            )
        return FleetError(
            ErrorCode.INVALID_REQUEST,
            f"The {what} needs more than {size_text(REQUEST_BYTES)} of memory for this request. "
            "Send less text or fewer messages.",
        )


def _read_request(data: bytes) -> GenerateRequest:
    try:
        return _REQUEST(data)
    except (codec.UnreadableMessage, RecursionError) as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> FleetError:
    return FleetError(ErrorCode.INVALID_REQUEST, f"The request cannot be read: {error}.")


def _too_large(size: int, limit: int) -> FleetError:
    return FleetError(
        ErrorCode.REQUEST_TOO_LARGE,
        f"The answer has {size:,} bytes, but a message on the bus may have at most {limit:,}. Send "
        "less text.",
    )


def _too_slow(cpu_seconds: float) -> FleetError:
    return FleetError(
        ErrorCode.INVALID_REQUEST,
        f"The model cannot take this conversation: its chat template took more than "
        f"{cpu_seconds:g} s of processor time. Send fewer messages or tools; if there are few, the "
        "template is at fault.",
        param="messages",
    )


def _load_bytes(file_bytes: int) -> int:
    return LOAD_BYTES + LOAD_FILE_FACTOR * file_bytes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
