"""Takes a request from admission to its last token, on as many neurons as that needs.

Decided here: whether a request may run, when it has its turn, which node is asked, how long it
may wait, and who continues an answer whose neuron was lost. The endpoints call ``Dispatcher``
through ``answer``; ``cortex.gateway`` reports changes of the fleet to it.

Read the pure deciders first: ``router``, ``fair_queue``, ``request_queue``, ``wait_budget``,
``prefix_affinity``; ``refusals`` has the words for what they refuse, and ``decisions`` and
``admission`` feed them from the live fleet. Then the effects: ``hand_over`` (jobs to the stream),
``receiver`` (frames in, orders out), ``attempts`` (one neuron after another), ``claim`` (streams of
other gateways), ``dispatcher`` (all requests), ``answer`` (the choices of one answer).
``render_client`` asks nodes about prompts.
"""
