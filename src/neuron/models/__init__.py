"""Model architectures: reading checkpoints (torch-free) and building the PyTorch modules."""
