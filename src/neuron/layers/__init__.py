"""The PyTorch building blocks of model architectures: attention, linear maps, norms, KV cache.

This package decides how a step is computed, down to the kernels and the order of sums that keep
results exact. It knows no architectures, sequences or scheduling: ``neuron.models`` assembles the
layers, ``neuron.engine`` provides the block tables and the KV cache.

Read ``paging`` (the sizes) and ``cache`` first, then ``attention`` (the contract and the reference
path) and ``tiles`` (the fast path on a CPU). ``linear``, ``embedding``, ``mlp``, ``norm``, ``rope``
and ``rotary`` are the other parts. ``group`` is tensor parallelism, and ``weight_target`` says
where a checkpoint's tensor goes. ``paging`` and ``rope`` import no torch, so the service may use
them.
"""
