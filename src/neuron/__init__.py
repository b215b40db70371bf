"""neuron: the service of one GPU host. It loads models and runs inference for the fleet."""

__version__ = "0.1.0"
