"""Model architectures: checkpoints and configs, and the PyTorch modules built from them.

This package decides which models can be loaded, what their config.json means, and where each tensor
goes. It must not know the engine. ``neuron.engine.loader`` builds and fills a ``Decoder``; the
service and ``neuron.sizing`` use the modules that need no torch to check a checkpoint before an
engine starts.

Read ``errors``, ``checkpoint`` and ``config`` first (what a model is), then ``traits`` and
``families`` with ``windows`` and ``ropeconfig`` (how families differ), ``sharding`` (over how many
ranks a model can be split), and last ``decoder``, ``attention`` and ``weights``, the only ones that
import torch.
"""
