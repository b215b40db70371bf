"""Everything that the service and an engine process must both know; no torch.

This package decides what the two kinds of process say to each other, how messages are framed, and
which defaults both sides rely on. It must not know how either side works.

``neuron.engine_process`` holds the service's end of each channel and ``neuron.engine`` the other.
Read ``messages`` first (the whole conversation, from ``Start`` to ``Fatal``), then ``channel``
(frames over a socketpair), ``rank_commands`` (what rank 0 sends to the other ranks),
``fork_requests`` (how a process is asked for) and ``defaults`` (limits that the memory estimate
shares with the engine).
"""
