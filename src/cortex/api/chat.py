"""``POST /v1/chat/completions``: decode, admit, relay.

A client that leaves cancels its request wherever it is.
"""

import time

from starlette.types import Receive, Scope, Send

from cortex.api.access import caller_of
from cortex.api.http import ClientGone, read_body, send_error, watching_disconnect
from cortex.api.openai_decode import decode_chat
from cortex.api.openai_render import ChunkWriter, Folder
from cortex.api.relay import Relay
from cortex.gateway import Gateway
from cortex.metrics import Outcome
from cortex.record import Record
from protocol.errors import FleetError
from protocol.job import Client


class ChatCompletions:
    """The endpoint as an ASGI application."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._metrics = gateway.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        record: Record | None = None
        try:
            call = decode_chat(await read_body(scope, receive))
            caller = caller_of(scope)
            model, created = call.generate.model, int(time.time())
            request = self._gateway.catalogue.applied(call.generate, self._gateway.fleet.models())
            client = None
            if call.stream:
                client = Client(
                    owner=caller.owner,
                    created=created,
                    include_usage=call.include_usage,
                    model=model,
                )
            async with self._gateway.dispatcher.stream(
                request,
                seed=call.seed,
                tenant=caller.tenant,
                client=client,
                priority=call.priority,
            ) as stream:
                record = stream.record
                self._metrics.began(record)
                relay = Relay(stream, send)
                async with watching_disconnect(receive, stream.inbox.close):
                    if call.stream:
                        writer = ChunkWriter(stream.job.id, model, created, call.include_usage)
                        outcome = await relay.stream(writer)
                    else:
                        outcome = await relay.fold(Folder(stream.job.id, model, created))
        except ClientGone:
            outcome = Outcome.CANCELLED
        except FleetError as error:
            outcome = Outcome.of(error.error)
            await send_error(send, error.error)
        self._metrics.request(outcome, record)
