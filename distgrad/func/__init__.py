"""Functions of functions: derivatives, batches, and modules as functions of their parameters.

How they nest is written in ``autograd/traced.py``, Note [Layers].
"""

from distgrad.func.module import functional_call, stack_module_state
from distgrad.func.transforms import (
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    vjp,
)
from distgrad.func.vmap import vmap

__all__ = [
    "functional_call",
    "grad",
    "grad_and_value",
    "hessian",
    "jacfwd",
    "jacrev",
    "jvp",
    "linearize",
    "stack_module_state",
    "vjp",
    "vmap",
]
