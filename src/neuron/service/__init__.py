"""The neuron service: bus on one side, engine processes on the other; never torch."""
