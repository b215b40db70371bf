"""The HTTP surface: requests in, events out. Handlers hold no state beyond one request.

Decided here: what a client may send, how each failure looks over HTTP, who may give orders, and
when bytes go out. ``cortex.app`` mounts the endpoints, which call ``cortex.dispatch``, never NATS.

Read ``errors`` (the table from codes to statuses) and ``http`` (ASGI helpers) first, then
``dialects`` (how each API is decoded and rendered), then ``endpoints``. ``access`` decides who
may ask for what, ``guards`` stand before every endpoint, and ``middleware`` wraps all of it.
"""
