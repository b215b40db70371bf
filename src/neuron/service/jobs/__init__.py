"""The jobs of a node: from a request on the bus to the frames of its answer.

This package decides which jobs a loaded model takes, in which order suspects run, what a gateway
is told and when, and how long answers are kept so that lost frames can be sent again. It must not
know how models are loaded or where they fit.

``neuron.service.residents`` makes one ``Worker`` for each loaded model; ``neuron.service.node``
owns the ``Jobs`` that gateways ask about. Read ``worker`` and ``running_job`` first, then
``prompt`` (the way in), ``answer_parts`` and ``transcript`` (the way out), ``registry`` (jobs that
are kept), and last ``suspects``, ``step_time`` and ``gateway_liveness``, which only decide.
"""
