"""The command ``cortex``: starts a fleet or a gateway, and talks to a running fleet.

Owned here: the commands, their options and what they print; no other part of the gateway prints.
The commands reach a running fleet over HTTP only, through ``cortex.gateway_client``, like any other
client.

Read ``main`` (``up`` and ``serve``) first, then ``fleet`` (the commands for a running fleet), then
``tables`` (pure: what ``/fleet`` returns, as lines of text).
"""
