"""The engine's processes as the service sees them; no torch.

This package decides when an engine is started, when it counts as stuck and is killed, and how its
end is reported: a dead engine ends all of its open streams with one reason. It must not know the
bus, jobs or what messages mean beyond sequences.

``neuron.service.residents`` starts an ``EngineProcess``, and ``neuron.service.jobs`` adds and
aborts sequences on it. Read ``client`` first, then ``rank_processes`` (all ranks of one engine)
and ``child`` (one process and its stderr), then ``launch`` and ``fork_server`` (the two ways in
which a process is made), then ``sequence_stream`` (what one sequence receives) and ``watchdog``
(when silence is too long).
"""
