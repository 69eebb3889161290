"""What only PyTorch's programs ask of ``torch.cuda``: types of tensors by their older names."""

from distgrad.ops.typed import ON_CUDA

globals().update(ON_CUDA)
