"""What only PyTorch's programs ask of ``torch.nn.attention``."""
