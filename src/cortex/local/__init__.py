"""``cortex up``: a whole fleet on one machine, as child processes.

Decided here: which processes run, on which ports, with which share of the cores, when one is
restarted, and in which order they stop. ``cortex.cli.main`` calls ``up``; no other module of cortex
depends on this package.

Read ``up`` (the fleet and its order of start and stop) first, then ``supervisor`` (one child:
started, watched, logged, restarted), then ``nats_server`` (the embedded broker).
"""
