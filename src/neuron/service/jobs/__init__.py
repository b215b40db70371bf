"""The jobs of this node: taken from the bus, run on an engine, answered in frames.

Decided here: whether a job is taken, what its prompt is, who may run beside a request that may have
killed an engine, when a job is parked because its gateway is gone, and for how long its answer is
kept. Which node is asked is decided by the router, in a gateway; in which order sequences compute,
by the engine.

``neuron.service.residents.resident`` starts a ``Worker`` for each engine, ``neuron.service.node``
passes on what gateways ask about jobs. Read ``worker`` first, then ``prompt`` (request to tokens),
``running_job`` (tokens to frames; ``answer_parts`` and ``transcript`` are its parts) and
``registry`` (jobs by id, across models). ``suspects``, ``step_time`` and ``gateway_liveness``
answer one question each.
"""
