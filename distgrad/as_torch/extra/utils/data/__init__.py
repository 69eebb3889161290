"""What only PyTorch's programs ask of ``torch.utils.data``."""
