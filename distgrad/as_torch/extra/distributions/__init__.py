"""What packages for probability take from PyTorch's distributions beside the public names."""
