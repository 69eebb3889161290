"""What a GPU does better than CuPy does: matrix products, convolutions, attention, fused kernels.

Only `cupy_backend` imports this package.  ``table.KERNELS`` says which function of arrays has a
form of its own here; ``distgrad.backend.forms`` asks it.
"""
