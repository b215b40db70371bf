"""Keeps bodies off the event loop that would hold it for long: those of very many small values.

Decided here: how many values a request may have, and where that is counted. Long texts are quick
to decode; it is the number of values that takes time, and neither threads nor pauses help, because
a decoder holds Python's lock until it is done. ``cortex.api.http.BodyReader`` calls it for every
body.

Read ``complexity`` (pure: the bounds) first, then ``process`` (a program that counts) and
``screener`` (the gateway's side of it).
"""
