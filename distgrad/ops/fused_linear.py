"""A linear layer and the activation after it, as one matrix product on a GPU.

On a GPU the bias, ReLU or GELU, and in backward their derivative and the bias's gradient, cost no
pass over memory of their own: the product does them before it stores a result (cuBLASLt's
epilogues, in backend/cuda/gemm.py).  On the host the layers are computed one after the other, as
they always were; the fused operations can be computed there too, which tests them.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy

from distgrad.autograd.declare import op, recover, table
from distgrad.autograd.into import Into
from distgrad.autograd.mode import mode
from distgrad.autograd.samples import case, real
from distgrad.autograd.traced import is_traced
from distgrad.backend.device import array_namespace
from distgrad.backend.forms import device_form
from distgrad.ops.activation import gelu, relu
from distgrad.ops.matmul import linear, times_slope, weight_gradient
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace

__all__ = ["linear_activation"]

Activation = Literal["relu", "gelu_tanh"]


@device_form
def _linear_activation(
    xp: Namespace, x: Array, weight: Array, bias: Array | None, activation: Activation, keep: bool
) -> tuple[Array, Array | None]:
    """Return the layer's output, and with ``keep`` what its backward needs besides.

    That is what went into GELU, as rows.  ReLU needs its output only.
    """
    z = xp.gemm(x, weight.T, bias)
    if activation == "relu":
        return xp.at_least(z, 0), xp.empty((0, 0), xp.uint8)
    rows = z.reshape(math.prod(z.shape[:-1]), z.shape[-1])
    return table["gelu"].forward(xp, z, approximate="tanh"), rows


def _backward(
    F: Any, dz: Array, sums: Array | None, needs: tuple[bool, ...], input: Array, weight: Array,
    into: Into | None,
) -> tuple[Array | None, ...]:  # fmt: skip
    """Return the gradients of input, weight and bias from that of the product with its bias.

    ``sums``: that of the bias, where it is known.
    """
    d_input = d_weight = d_bias = None
    if needs[0] and not (into is not None and times_slope(into, dz, weight)):
        d_input = F.matmul(dz, weight)
    if needs[1]:
        rows = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
        of = "bias" if sums is None else ""
        d_weight = weight_gradient(F, dz.reshape(len(rows), len(weight)), rows, into, of)
    if needs[2]:
        if sums is None and into is not None:
            sums = into.sums
        d_bias = dz if sums is None else sums
    return d_input, d_weight, d_bias


def _d_linear_relu(
    F: Any, xp: Namespace, g: Array, needs: tuple[bool, ...], input: Array, weight: Array,
    result: Array, aux: Array, into: Into | None,
) -> tuple[Array | None, ...]:  # fmt: skip
    given = None if into is None else into.given()
    dz = xp.where_positive(result, g) if given is None else g
    return _backward(F, dz, given, needs, input, weight, into)


def _d_linear_gelu(
    F: Any, xp: Namespace, g: Array, needs: tuple[bool, ...], input: Array, weight: Array,
    aux: Array, into: Into | None,
) -> tuple[Array | None, ...]:  # fmt: skip
    given = None if into is None else into.given()
    if given is None:
        z = aux[:, : len(weight)].reshape(g.shape)
        g = table["gelu"].rules["input"](xp=xp, g=g, input=z, approximate="tanh")
    return _backward(F, g, given, needs, input, weight, into)


_SAMPLES = [
    case(real(5, 3), real(4, 3), real(4)),
    case(real(2, 5, 3), real(4, 3)),
    case(real(2, 3, 8), real(16, 8), real(16)),
    case(real(0, 3), real(4, 3), real(4)),
]


@op(
    samples=_SAMPLES,
    outputs=("result", "aux!"),
    method=False,
    node="AddmmActivationBackward0",
    reference=lambda torch, x, w, b=None: torch.relu(torch.nn.functional.linear(x, w, b)),
    formula=lambda F, input, weight, bias: F.relu(F.linear(input, weight, bias)),
    d_all=_d_linear_relu,
)
def linear_relu(xp: Namespace, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Return ``relu(linear(input, weight, bias))``, and what backward needs.

    Differs from PyTorch:
        On a GPU nan becomes 0, which is what cuBLASLt's ReLU makes of it.
    """
    return _linear_activation(xp, input, weight, bias, "relu", True)


@op(
    samples=_SAMPLES,
    outputs=("result", "aux!"),
    method=False,
    node="AddmmActivationBackward0",
    reference=lambda torch, x, w, b=None: torch.nn.functional.gelu(
        torch.nn.functional.linear(x, w, b), approximate="tanh"
    ),
    formula=lambda F, input, weight, bias: F.gelu(
        F.linear(input, weight, bias), approximate="tanh"
    ),
    d_all=_d_linear_gelu,
)
def linear_gelu(xp: Namespace, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Return ``gelu(linear(input, weight, bias), approximate="tanh")``, and what backward needs."""
    return _linear_activation(xp, input, weight, bias, "gelu_tanh", True)


def linear_activation(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation
) -> Tensor:
    """Return the activation of ``linear(input, weight, bias)``, on a GPU by one matrix product.

    Shape:
        input: ``(*, in)``, weight: ``(out, in)``, bias: ``(out,)``.
    Args:
        activation: "relu", or "gelu_tanh" for GELU with ``approximate="tanh"``.
    Differs from PyTorch:
        On a GPU ReLU makes 0 of nan, as cuBLASLt does.

    Example:
        >>> import distgrad as dg
        >>> linear_activation(dg.ones(1, 2), dg.tensor([[1.0, 1.0], [-1.0, 0.0]]), None, "relu")
        tensor([[2., 0.]])
    """
    if type(input.array) is numpy.ndarray or is_traced((input, weight)):
        made = linear(input, weight, bias)
        return relu(made) if activation == "relu" else gelu(made, approximate="tanh")
    if mode.grad and any(t is not None and t._requires for t in (input, weight, bias)):
        out: Tensor = (linear_relu if activation == "relu" else linear_gelu)(input, weight, bias)[0]
        return out
    return _without_backward(input, weight, bias, activation)


def _without_backward(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation
) -> Tensor:
    xp = array_namespace(input.array)
    vector = None if bias is None else bias.array
    try:
        return wrap(_linear_activation(xp, input.array, weight.array, vector, activation, False)[0])
    except Exception as error:
        operands = {"input": input, "weight": weight, "bias": bias}
        return recover("linear_activation", error, operands, {"activation": activation})  # type: ignore[no-any-return]
