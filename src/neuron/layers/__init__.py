"""The PyTorch parts that model architectures are made of."""
