"""The neuron service: connects the bus with the engine processes of one node; never imports torch.

This package decides which models the node holds and which jobs it takes, and turns what engines
produce into frames for gateways. ``neuron.serve`` starts its ``Node``; nothing below it may import
``neuron.engine``, so that the service starts in a fraction of a second and survives whatever
happens to an engine.

Read ``node`` first (what the node does on the bus), then ``residents`` (the models it holds and
could load) and ``jobs`` (the requests it answers). ``identity`` is what both send with,
``engine_protocol`` what they need of an engine, and ``rendering`` answers how a prompt looks
without running it.
"""
