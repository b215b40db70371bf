"""Request/reply endpoints as a NATS micro service, so that ``nats micro ls``, ``info`` and
``stats`` show them."""

from collections.abc import Awaitable, Callable, Mapping

import nats.micro
from nats.micro.request import Request

from protocol.bus.connection import Bus


async def serve_verbs(
    bus: Bus,
    *,
    name: str,
    version: str,
    description: str,
    metadata: Mapping[str, str],
    endpoints: Mapping[str, Callable[[bytes], Awaitable[bytes]]],
) -> None:
    """Serves *endpoints* (subject → handler of the payload) until the connection closes.

    Handlers run one at a time and must reply at once; lengthy work is reported through KV.
    """
    service = await nats.micro.add_service(
        bus.client,
        name=name,
        version=version,
        description=description,
        metadata=dict(metadata),
    )
    for subject, handle in endpoints.items():

        async def respond(
            request: Request, handle: Callable[[bytes], Awaitable[bytes]] = handle
        ) -> None:
            await request.respond(await handle(request.data))

        await service.add_endpoint(
            name=subject.rpartition(".")[2], subject=subject, handler=respond
        )
