"""Process plumbing of both programs, without any vocabulary of the fleet.

Owned here: how settings files are read, sockets are opened, logs look, and children end with their
parent. Both ``cortex`` and ``neuron`` call these modules from their outermost layer.

Read ``settings`` (TOML with errors for people) first; ``listen``, ``logs``, ``loop``, ``sizes``,
``waiting`` and ``die_with_parent`` each stand alone.
"""
