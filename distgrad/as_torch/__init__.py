"""PyTorch programs on distgrad, unmodified: ``import torch`` and its submodules mean this package.

``python -m distgrad.launch --as-torch script.py`` does it for a script, ``distgrad.as_torch()`` for
a notebook.  What distgrad does not have raises AttributeError or ImportError with its name.
"""

from distgrad.as_torch.finder import as_torch

__all__ = ["as_torch"]
