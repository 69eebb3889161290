"""What only PyTorch's programs ask for, at PyTorch's paths: ``extra.jit`` is ``torch.jit``."""
