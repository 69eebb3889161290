"""Checks of convolution and attention on a GPU: values and gradients against the host's.

``tests/test_gpu_cudnn.py`` runs them on the stand-in for CuPy, ``tests/gpu`` on a real GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import distgrad as dg
from distgrad.backend.device import CPU, device
from distgrad.nn import functional as F

__all__ = [
    "ATTENTIONS", "CONVOLUTIONS", "DTYPES", "TOLERANCE", "Attention", "Convolution",
    "check_attention", "check_closed_rows", "check_convolution", "check_dropout",
]  # fmt: skip

DTYPES = {"float32": dg.float32, "float16": dg.float16, "bfloat16": dg.bfloat16}
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}  # of the largest number


class Convolution(NamedTuple):
    """A call of a function, with the shapes of its operands."""

    name: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    options: dict[str, Any]
    bias: bool = True


CONVOLUTIONS = {
    "plain": Convolution("conv2d", (2, 3, 8, 8), (4, 3, 3, 3), {}),
    "padded": Convolution("conv2d", (2, 8, 7, 9), (16, 8, 3, 3), {"padding": 1}),
    "no bias": Convolution("conv2d", (2, 8, 6, 6), (8, 8, 3, 3), {"padding": 1}, bias=False),
    "strided": Convolution("conv2d", (2, 5, 9, 8), (4, 5, 3, 2), {"stride": (2, 3), "padding": 1}),
    "stem": Convolution("conv2d", (2, 3, 20, 20), (8, 3, 7, 7), {"stride": 2, "padding": 3}),
    "pointwise": Convolution("conv2d", (2, 16, 5, 5), (8, 16, 1, 1), {"stride": 2}),
    "dilated": Convolution("conv2d", (1, 4, 12, 11), (3, 4, 3, 3), {"padding": 2, "dilation": 2}),
    "same, even kernel": Convolution("conv2d", (2, 3, 7, 6), (4, 3, 2, 4), {"padding": "same"}),
    "groups": Convolution("conv2d", (2, 6, 7, 7), (10, 3, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": Convolution("conv2d", (2, 6, 8, 8), (6, 1, 3, 3), {"groups": 6, "padding": 1}),
    "unbatched": Convolution("conv2d", (3, 8, 8), (4, 3, 3, 3), {}),
    "what no window reaches": Convolution("conv2d", (1, 2, 8, 9), (3, 2, 3, 3), {"stride": 4}),
    "signal": Convolution("conv1d", (2, 3, 14), (4, 3, 5), {"stride": 2, "padding": 2}),
    "signal, same": Convolution("conv1d", (2, 8, 9), (8, 4, 4), {"padding": "same", "groups": 2}),
    "volume": Convolution("conv3d", (1, 2, 5, 6, 4), (3, 2, 2, 3, 2), {"padding": (1, 0, 1)}),
    "transposed": Convolution(
        "conv_transpose2d", (2, 4, 5, 6), (4, 3, 3, 3), {"stride": 2, "output_padding": 1}
    ),
    "transposed, groups": Convolution(
        "conv_transpose2d", (2, 6, 4, 4), (6, 2, 3, 3), {"groups": 3, "padding": 1}, bias=False
    ),
    "transposed, longer than its windows": Convolution(
        "conv_transpose1d", (2, 8, 5), (8, 3, 3), {"dilation": 3, "output_padding": 2, "stride": 1}
    ),
    "transposed, farther than its windows": Convolution(
        "conv_transpose2d", (2, 2, 3, 3), (2, 8, 3, 3), {"dilation": 4, "output_padding": 3}
    ),
    "transposed volume": Convolution(
        "conv_transpose3d", (1, 3, 3, 2, 3), (3, 2, 2, 2, 2), {"stride": 2}
    ),
}  # fmt: skip


class Attention(NamedTuple):
    """A call of attention: (batch, heads, length, width) of its operands."""

    shapes: tuple[tuple[int, ...], ...]  # of query, key and value
    options: dict[str, Any]
    mask: tuple[int, ...] | None = None
    mask_is: str = "bool"  # or "float", which has a gradient


def _square(batch: int, heads: int, length: int, width: int) -> tuple[tuple[int, ...], ...]:
    return ((batch, heads, length, width),) * 3


ATTENTIONS = {
    "plain": Attention(_square(2, 3, 7, 8), {}),
    "causal": Attention(_square(2, 3, 9, 16), {"is_causal": True}),
    "scale": Attention(_square(1, 2, 5, 8), {"scale": 0.7}),
    "cross": Attention(((2, 2, 6, 8), (2, 2, 11, 8), (2, 2, 11, 16)), {}),
    "causal cross": Attention(((2, 2, 6, 8), (2, 2, 4, 8), (2, 2, 4, 8)), {"is_causal": True}),
    "one batch of heads": Attention(((3, 6, 8), (3, 5, 8), (3, 5, 8)), {}),
    "mask": Attention(_square(2, 3, 6, 8), {}, (6, 6)),
    "mask of keys": Attention(_square(2, 3, 6, 8), {}, (2, 1, 1, 6)),
    "bias": Attention(_square(2, 3, 6, 8), {}, (2, 3, 6, 6), "float"),
    "bias for all": Attention(_square(2, 3, 6, 8), {}, (1, 3, 6, 6), "float"),
    "bias of keys": Attention(_square(2, 3, 6, 8), {}, (1, 6), "float"),
    "groups": Attention(((2, 6, 5, 8), (2, 2, 5, 8), (2, 2, 5, 8)), {"enable_gqa": True}),
    "groups, mask": Attention(
        ((2, 4, 5, 8), (2, 2, 5, 8), (2, 2, 5, 8)), {"enable_gqa": True}, (2, 4, 5, 5),
    ),
    "odd width": Attention(_square(1, 2, 5, 6), {"is_causal": True}),
}  # fmt: skip


# ---------------------------------------------------------------------- the checks
def check_convolution(
    name: str, dtype: str, place: device, layout: Any = dg.contiguous_format
) -> dict[str, Any]:
    """Compare value and gradients with the host's, in float32 from the same numbers.

    Args:
        name: a key of ``CONVOLUTIONS``.
        dtype: a key of ``DTYPES``.
        place: the device.
        layout: the memory format of input and weight.

    Returns:
        The tensors on the device, by their names.
    """
    case = CONVOLUTIONS[name]
    rng = np.random.default_rng(0)
    shapes = {"input": case.input, "weight": case.weight}
    if case.bias:
        groups = case.options.get("groups", 1)
        outputs = case.weight[1] * groups if "transpose" in case.name else case.weight[0]
        shapes["bias"] = (outputs,)
    call = getattr(F, case.name)

    def laid_out(x: Any) -> Any:
        return x.contiguous(memory_format=layout) if x.ndim == 4 else x

    drawn = {n: _numbers(rng, s, dtype) for n, s in shapes.items()}
    return _compare(lambda **t: call(**t, **case.options), drawn, dtype, place, laid_out)


def check_attention(
    name: str, dtype: str, place: device, *, packed: bool = False
) -> dict[str, Any]:
    """Compare value and gradients with the host's, in float32 from the same numbers.

    Args:
        name: a key of ``ATTENTIONS``.
        dtype: a key of ``DTYPES``.
        place: the device.
        packed: operands are views of (batch, length, heads, width).
    """
    case = ATTENTIONS[name]
    rng = np.random.default_rng(0)
    named = zip(("query", "key", "value"), case.shapes, strict=True)
    drawn: dict[str, Any] = {n: _numbers(rng, shape, dtype) for n, shape in named}
    if case.mask is not None and case.mask_is == "float":
        drawn["attn_mask"] = _numbers(rng, case.mask, dtype)
    elif case.mask is not None:
        open_ = rng.random(case.mask) < 0.6
        if len(case.mask) == 2:
            open_[0] = False  # a row that may look nowhere gives 0
        drawn["attn_mask"] = dg.from_numpy(open_)

    def laid_out(x: Any) -> Any:
        if not packed or x.ndim != 4:
            return x
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def call(**tensors: Any) -> Any:
        return F.scaled_dot_product_attention(**tensors, **case.options)

    return _compare(call, drawn, dtype, place, laid_out)


def check_closed_rows(place: device) -> None:
    """Look at rows whose mask closes them: 0, and no gradient, never nan."""
    q, k, v = (dg.ones(1, 1, 3, 8, dtype=dg.float16, device=place) for _ in range(3))
    q.requires_grad_()
    mask = dg.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=dg.bool, device=place)
    for closed in (mask, dg.zeros(3, 3, device=place).masked_fill(~mask, -np.inf).half()):
        out = F.scaled_dot_product_attention(q, k, v, closed)
        out.sum().backward()
        assert out[0, 0, :, 0].tolist() == [1, 0, 1]
        assert q.grad is not None and not q.grad.isnan().any()


def check_dropout(place: device) -> None:
    """Compare the output, linear in the values, with the gradients of these, and its dropout."""
    dg.manual_seed(3)
    q = dg.randn(2, 3, 64, 16, device=place).half().requires_grad_()
    v = dg.randn(2, 3, 64, 64, device=place).half().requires_grad_()
    g = dg.randn(2, 3, 64, 64, device=place).half()
    out = F.scaled_dot_product_attention(q, q, v, dropout_p=0.5, is_causal=True)
    (out * g).sum().backward()
    assert v.grad is not None
    one, other = (float((a.float() * b.float()).sum()) for a, b in ((out, g), (v, v.grad)))
    assert abs(one - other) < 0.5 and abs(one) > 5
    identity = dg.eye(64, device=place).half().expand(2, 3, 64, 64)
    weights = F.scaled_dot_product_attention(q, q, identity, dropout_p=0.5)
    assert 0.45 < (weights != 0).float().mean().item() < 0.55
    assert 0.9 < weights.float().sum(-1).mean().item() < 1.1


def _numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    """Return numbers that ``dtype`` has, in float32."""
    exact = dg.from_numpy(rng.standard_normal(shape).astype("float32"))
    return exact.to(DTYPES[dtype]).float()


def _compare(
    call: Callable[..., Any], drawn: dict[str, Any], dtype: str, place: device,
    laid_out: Callable[[Any], Any],
) -> dict[str, Any]:  # fmt: skip
    host = {n: _leaf(t, t.dtype, CPU, lambda x: x) for n, t in drawn.items()}
    kinds = {n: DTYPES[dtype] if t.dtype == dg.float32 else t.dtype for n, t in drawn.items()}
    here = {n: _leaf(t, kinds[n], place, laid_out) for n, t in drawn.items()}
    want, got = call(**host), call(**here)
    g = _numbers(np.random.default_rng(1), want.shape, dtype)
    want.backward(g)
    got.backward(g.to(DTYPES[dtype]).to(place))
    _close(got, want, dtype, "result")
    for n, t in here.items():
        if t.requires_grad:
            _close(t.grad, host[n].grad, dtype, n)
    return {"result": got, **here}


def _leaf(t: Any, kind: Any, place: device, laid_out: Callable[[Any], Any]) -> Any:
    moved = laid_out(t.to(kind).to(place)).detach()
    return moved.requires_grad_(t.dtype == dg.float32)


def _close(got: Any, want: Any, dtype: str, what: str) -> None:
    assert got.dtype == DTYPES[dtype] and got.shape == want.shape, what
    host = got.detach().cpu().float().numpy()
    expected = want.detach().numpy()
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(host, expected, rtol=0, atol=scale * TOLERANCE[dtype], err_msg=what)
