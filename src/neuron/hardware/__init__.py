"""The hardware of this host as this process may use it; no torch.

This package decides which devices exist, how they are numbered, how much memory is free within
cgroups and limits, and which dtypes the CPU computes natively. Nothing here may end the service:
a broken device is logged and left out. Must not know models or the bus.

``neuron.service.node`` discovers devices at start and reads their usage for its heartbeats;
``neuron.sizing`` and the engine use ``dtypes`` and ``host``. Read ``host`` (CPU, memory, /proc and
cgroups), then ``discovery`` (GPUs through NVML), then ``dtypes``.
"""
