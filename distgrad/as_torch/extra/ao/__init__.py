"""PyTorch's optimisations of architectures; quantization is not here."""
