"""How much memory models need on this node, and which of it is reserved; pure, no torch.

This package decides what a model would take before anything is loaded, with one line of
explanation per term, and keeps the books of the node's devices. Must not know engines, jobs or
the bus.

``neuron.service`` calls it: for the offers that the placer reads, for the size of an engine's KV
cache, and to reserve memory before a load. Read ``estimate`` (the arithmetic of one
model), then ``appraisal`` (profile, settings and files combined) and ``ledger`` (who holds what).
The engine's own, final check of free memory is in ``neuron.engine.machine.memory``.
"""
