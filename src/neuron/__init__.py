"""neuron: one service per GPU host; loads models and runs inference for the fleet."""
