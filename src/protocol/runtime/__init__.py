"""Process plumbing of both programs, without any vocabulary of the fleet.

Owned here: how settings files are read, sockets are opened, HTTP is served and stopped, logs look,
and children end with their parent. Both ``cortex`` and ``neuron`` call these modules from their
outermost layer.

Read ``settings`` (TOML with errors for people) and ``http_server`` (the only door to Hypercorn)
first. The others each stand alone: ``listen``, ``stop_signals``, ``logs``, ``loop``, ``sizes``,
``waiting``, ``die_with_parent``.
"""
