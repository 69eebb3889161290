"""PyTorch's elastic launcher, whose place ``distgrad.launch`` takes."""
