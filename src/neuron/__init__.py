"""neuron: one service per GPU host; loads models and runs inference for the fleet."""

__version__ = "0.1.0"
