"""Calls of functions that are made of several operations, for the comparison of devices.

Each takes ``x`` (float64, 3 by 4, requires grad), ``i`` (int64, 3 by 4, 0 to 3) and ``m`` (float64
images, 2 by 3 by 8 by 8).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import distgrad as dg
from distgrad import nn
from distgrad.nn import functional as F
from distgrad.tensor import Tensor

Call = Callable[[Any, Any, Any], Any]


def _index(like: Tensor, *values: Any) -> Any:
    return dg.tensor(list(values), device=like.device)


def _assigned(x: Any, i: Any, m: Any) -> Any:
    y = x.clone()
    y[y > 1] = 0
    y[0] = 1
    y[:, 1] = y[:, 0]
    y[_index(x, 0, 2), 1] = 5.0
    y[1, [0, 3]] = x.new_zeros(2)
    return y


def _made(x: Any, i: Any, m: Any) -> Any:
    d = x.device
    return (
        dg.zeros_like(x), dg.ones(2, device=d), dg.full((2,), 3, device=d), dg.eye(3, device=d),
        dg.linspace(0, 1, 5, device=d), dg.logspace(0, 1, 5, device=d),
        dg.arange(0, 1, 0.25, device=d), x.new_tensor([1.0, 2.0]), x.new_full((2,), 3.0),
        dg.full_like(x, 2), dg.triu_indices(3, 4, device=d),
    )  # fmt: skip


def _drawn(x: Any, i: Any, m: Any) -> Any:
    """Return what has the same value whatever was drawn: devices draw other numbers."""
    p = x.detach().sigmoid()
    drawn = [
        dg.rand_like(x), dg.randn_like(x), dg.randint(0, 5, (3,), device=x.device),
        dg.randperm(6, device=x.device), dg.bernoulli(p), dg.multinomial(p, 2), dg.normal(p, p),
        p.clone().uniform_(), p.clone().normal_(), p.clone().exponential_(),
        p.clone().bernoulli_(p), F.dropout(x, 0.5), F.alpha_dropout(x, 0.5, True),
        F.rrelu(x, training=True), p.clone().cauchy_(), p.clone().log_normal_(),
        p.clone().geometric_(0.5), F.dropout2d(m, 0.5), F.gumbel_softmax(x),
    ]  # fmt: skip
    assert all(t.device == x.device for t in drawn)
    return [t.detach() * 0 for t in drawn]


def _layers(x: Any, i: Any, m: Any) -> Any:
    attention = nn.MultiheadAttention(8, 2).double().to(x.device)
    rows = m[:, 0]
    return attention(rows, rows, rows)


CALLS: dict[str, Call] = {
    "unique": lambda x, i, m: i.unique(return_inverse=True, return_counts=True),
    "unique_dim": lambda x, i, m: i.unique(dim=0),
    "unique_consecutive": lambda x, i, m: i.unique_consecutive(return_counts=True),
    "nonzero": lambda x, i, m: (i.nonzero(), *dg.nonzero(x > 0, as_tuple=True)),
    "mask": lambda x, i, m: (x[x > 0], x.masked_scatter(x > 0, dg.ones_like(x))),
    "assignment": _assigned,
    "lookup": lambda x, i, m: (x[[0, 2]], x[:, i[0, :2]], x.take(i), x[[True, False, True]]),
    "put": lambda x, i, m: x.index_put((_index(x, 0, 0),), x.new_ones(2, 4), accumulate=True),
    "quantile": lambda x, i, m: (x.quantile(0.3), x.nanquantile(0.3, dim=0), x.median(1).values),
    "counts": lambda x, i, m: (
        x.detach().histc(5), i.reshape(-1).bincount(minlength=7), dg.isin(i, 2),
        dg.bucketize(x.detach(), x.new_tensor([-1.0, 0.0, 1.0])),
    ),
    "statistics": lambda x, i, m: (*dg.std_mean(x, 1), *dg.var_mean(x), *dg.aminmax(x), x.norm(1)),
    "einsum": lambda x, i, m: dg.einsum("ij,bcij->bci", x[:3, :3], m[..., :3, :3]),
    "joins": lambda x, i, m: (dg.cat([x, i]), dg.stack([x, x]), dg.block_diag(x, x)),
    "repeats": lambda x, i, m: (x.repeat(2, 1), x.repeat_interleave(_index(x, 1, 2, 0), 0)),
    "pads": lambda x, i, m: [
        F.pad(m, (2, 3, 1, 0), mode=mode)
        for mode in ("constant", "reflect", "replicate", "circular")
    ],
    "arithmetic": lambda x, i, m: (
        2**x.abs(), 1 - x, 1 / x, x // 0.3, x % 0.3, i**2, i + 1.5, i / 2, (i > 1) & (i < 3), i ^ 1,
        ~(x > 0), dg.float_power(x, 2), dg.lerp(x, x + 1, 0.3), dg.addcmul(x, x, x, value=0.5),
    ),
    "in_place": lambda x, i, m: x.clone().mul_(2).add_(1).clamp_(0, 3).masked_fill_(x > 0, -1),
    "scatters": lambda x, i, m: [
        x.scatter_reduce(1, _index(x, *[[0, 0, 1, 1]] * 3), x, reduce)
        for reduce in ("sum", "mean", "prod", "amax", "amin")
    ],
    "scatters_of_integers": lambda x, i, m: [
        i.scatter_reduce(1, _index(i, *[[0, 0, 1, 1]] * 3), i, reduce)
        for reduce in ("sum", "prod", "amax")
    ],
    "added_complex": lambda x, i, m: dg.complex(x, x).index_add(
        0, _index(x, 0, 0), dg.complex(x, x)[:2]
    ).abs(),
    "complex": lambda x, i, m: (
        dg.complex(x, x).angle(), dg.complex(x, -x).conj().imag, dg.complex(x, x).sgn().abs(),
    ),
    "linalg": lambda x, i, m: (
        dg.linalg.svdvals(x), dg.linalg.pinv(x), dg.linalg.lstsq(x.T, x.T[:, :2]).solution,
        dg.linalg.matrix_norm(x, "nuc"), dg.linalg.vector_norm(x, float("inf"), dim=1),
    ),
    "square": lambda x, i, m: [
        f(x[:, :3] @ x[:, :3].mT + 3 * dg.eye(3, dtype=x.dtype, device=x.device))
        for f in (
            dg.linalg.cond, dg.linalg.matrix_exp, dg.linalg.det, dg.linalg.eigvalsh, dg.linalg.inv,
            dg.linalg.cholesky, lambda s: dg.linalg.matrix_power(s, -2),
        )
    ],
    "pools": lambda x, i, m: (
        *F.max_pool2d(m, 2, return_indices=True), F.avg_pool2d(m, 3, 2, 1),
        F.adaptive_max_pool2d(m, 3), F.conv_transpose2d(m, m.new_ones(3, 2, 3, 3), stride=2),
    ),
    "norms": lambda x, i, m: (
        F.group_norm(m, 3), F.instance_norm(m), F.local_response_norm(m, 3), F.rms_norm(x, (4,)),
    ),
    "embeddings": lambda x, i, m: (
        F.one_hot(i, 5), F.embedding(i, x.new_ones(4, 3), max_norm=0.5),
        F.embedding_bag(i, x.new_ones(4, 3)),
    ),
    "losses": lambda x, i, m: (
        F.kl_div(x.log_softmax(1), x.softmax(1).detach()), F.huber_loss(x, 0.3 * x),
        F.binary_cross_entropy(x.sigmoid(), (x > 0).to(x.dtype)),
        F.nll_loss(x.log_softmax(1), _index(x, 0, 1, -100)), F.cross_entropy(x, x.softmax(1)),
        F.triplet_margin_loss(x, x + 1, x - 1), F.multi_margin_loss(x, _index(x, 0, 1, 3)),
    ),
    "creation": _made,
    "random": _drawn,
    "attention": _layers,
    "dtypes": lambda x, i, m: (
        x.int(), x.bool(), x.half().sum(), x.float().exp(), (x.bfloat16() @ x.bfloat16().T).float(),
    ),
    "numbers": lambda x, i, m: dg.tensor([x.sum().item(), *x[0].tolist(), float(x.max())]),
}  # fmt: skip
