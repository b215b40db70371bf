"""The connections of the HTTP server, over Hypercorn's.

Decided here: how long a connection is kept and which one goes when there are too many, when a
client counts as gone, and what of HTTP is spoken. ``protocol.runtime.http_server`` is the only
caller. Read ``crowd`` (pure: who makes way), ``hang_ups`` (who is gone), ``unread`` (who does not
read), ``inbox`` (what an application has yet to receive), ``http1`` (HTTP/1 over h11),
``connection`` (the life of one).
"""
