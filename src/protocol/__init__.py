"""The vocabulary that cortex and neuron share; see ``docs/architecture.md``."""
