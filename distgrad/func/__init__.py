"""Functions of functions: derivatives, batches, and modules as functions of their parameters.

How they nest is written in ``autograd/traced.py``, Note [Layers].
"""

from distgrad.func.jacobians import hessian, jacfwd, jacrev
from distgrad.func.module import functional_call, stack_module_state
from distgrad.func.transforms import (
    debug_unwrap,
    functionalize,
    grad,
    grad_and_value,
    jvp,
    linearize,
    vjp,
)
from distgrad.func.vmap import vmap

__all__ = [
    "debug_unwrap",
    "functional_call",
    "functionalize",
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
