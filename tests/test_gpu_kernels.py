"""The CUDA C++ of the package: run by an emulator against float64, and compiled for real GPUs."""

import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

import distgrad as dg
from distgrad.backend.random import Generator
from distgrad.nn import functional as F
from distgrad.testing import standin
from distgrad.testing.standin import emulator

ml_dtypes = pytest.importorskip("ml_dtypes")
needs_compiler = pytest.mark.skipif(not emulator.compiler(), reason="g++ is not installed")

FLOAT, HALF, DOUBLE = (np.dtype(kind) for kind in ("f4", "f2", "f8"))
BF16 = np.dtype(ml_dtypes.bfloat16)
ERROR = {FLOAT: 3e-6, HALF: 2e-3, BF16: 1.5e-2, DOUBLE: 1e-14}
DTYPES = [FLOAT, HALF, BF16, DOUBLE]
SEEDS = [0, 1]
GUARD = 32  # numbers before and after each array


@pytest.fixture(scope="module", autouse=True)
def _standin():
    with standin.installed():
        yield


@pytest.fixture(params=SEEDS, ids=lambda s: f"order{s}")
def gpu(request, monkeypatch):
    """CuPy whose new arrays are nan, with guards around them that nobody may write to."""
    import cupy

    made, empty = [], cupy.empty

    def guarded(shape, dtype=float, order="C"):
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        size = math.prod(shape)
        memory = empty(size + 2 * GUARD, dtype)
        memory.host.view(np.uint8)[...] = 0xFF  # nan in every floating point type
        made.append((memory.host, size))
        return memory[GUARD : GUARD + size].reshape(shape)

    monkeypatch.setattr(cupy, "empty", guarded)
    monkeypatch.setattr(standin.ledger, "seed", request.param)
    standin.ledger.launches.clear()
    yield cupy
    for host, size in made:
        for guard in (host[:GUARD], host[GUARD + size :]):
            assert (guard.view(np.uint8) == 0xFF).all(), "written outside of an array"


def draw(*shape, dtype=FLOAT, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def on(gpu, array, shift=0):
    """``array`` on the device, at a multiple of 16 bytes if ``shift`` is 0."""
    size = array.size
    room = gpu.empty(size + 16, array.dtype)
    start = (-room.data.ptr // array.itemsize) % (16 // min(array.itemsize, 16)) + shift
    place = room[start : start + size].reshape(array.shape)
    place.host[...] = array
    return place


def check(got, want, dtype, factor=1.0):
    got = got.get().astype("f8")
    assert got.shape == want.shape
    scale = np.linalg.norm(want) or 1.0
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - want) <= factor * ERROR[dtype] * scale


# ---------------------------------------------------------------------- rows
ROWS = [(1, 1), (3, 7), (37, 64), (5, 770), (2, 5000)]


def normalised(x, eps, centred=True):
    x = x.astype("f8")
    mean = x.mean(1, keepdims=True) if centred else 0.0
    rstd = 1 / np.sqrt(((x - mean) ** 2).mean(1, keepdims=True) + eps)
    return (x - mean) * rstd, rstd


def d_normalised(g, unit, rstd, w, centred=True):
    g = g.astype("f8") * w
    mean = g.mean(1, keepdims=True) if centred else 0.0
    return rstd * (g - mean - unit * (g * unit).mean(1, keepdims=True))


@needs_compiler
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_norm(gpu, dtype, shape, shift):
    from distgrad.backend.cuda import norm

    wide = np.dtype("f8") if dtype == DOUBLE else FLOAT
    x, g, w, b = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1), *draw(2, shape[1])
    w, b = w.astype(wide), b.astype(dtype if dtype == DOUBLE else wide)
    dx, dg, dw, db = (on(gpu, a, shift) for a in (x, g, w, b))
    out, mean, rstd = norm.layer_norm(dx, shape[1:], dw, db, 0.1)
    unit, want_rstd = normalised(x, 0.1)
    check(out, unit * w + b, dtype, 4)
    check(rstd, want_rstd, wide, 4)
    found = norm.d_layer_norm(dg, (True, True, True), dx, shape[1:], dw, mean, rstd)
    check(found[0], d_normalised(g, unit, want_rstd, w), dtype, 20)
    check(found[1], (g.astype("f8") * unit).sum(0), wide, 20)
    check(found[2], g.astype("f8").sum(0), wide, 20)
    assert "column_sums" in standin.ledger.launches


@needs_compiler
@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm(gpu, dtype, shape):
    from distgrad.backend.cuda import norm

    x, g = (draw(*shape, dtype=dtype, seed=seed) for seed in (0, 1))
    w = draw(shape[1], dtype=dtype)
    dx, dg, dw = (on(gpu, a) for a in (x, g, w))
    out, rstd = norm.rms_norm(dx, shape[1:], dw, 0.1)
    unit, want_rstd = normalised(x, 0.1, centred=False)
    check(out, unit * w.astype("f8"), dtype, 2)
    d_input, d_weight = norm.d_rms_norm(dg, dx, shape[1:], dw, rstd)
    check(d_input, d_normalised(g, unit, want_rstd, w.astype("f8"), centred=False), dtype, 20)
    check(d_weight, (g.astype("f8") * unit).sum(0), dtype, 20)


@needs_compiler
def test_sums_of_columns_do_not_depend_on_the_order_of_threads(gpu):
    from distgrad.backend.cuda import norm

    x, g = draw(300, 40), draw(300, 40, seed=1)
    d_weights = []
    for seed in range(3):
        standin.ledger.seed = 10 + seed
        dx, dg, w = on(gpu, x), on(gpu, g), on(gpu, np.ones(40, "f4"))
        _, mean, rstd = norm.layer_norm(dx, (40,), w, None, 1e-5)
        d_weights.append(norm.d_layer_norm(dg, (True, True, False), dx, (40,), w, mean, rstd)[1])
    assert len({d.get().tobytes() for d in d_weights}) == 1


# ---------------------------------------------------------------------- channels
IMAGES = [(4, 3), (64, 40), (2, 3, 5), (3, 5, 4, 8), (2, 16, 3, 3)]


@needs_compiler
@pytest.mark.parametrize("last", [False, True], ids=["planes", "columns"])
@pytest.mark.parametrize("shape", IMAGES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_norm(gpu, dtype, shape, last):
    from distgrad.backend.cuda import batch

    wide = np.dtype("f8") if dtype == DOUBLE else FLOAT
    x, g = draw(*shape, dtype=dtype) + dtype.type(3), draw(*shape, dtype=dtype, seed=1)
    w, b = draw(2, shape[1], dtype=wide)
    arrays = [on(gpu, a) for a in (x, g, w, b)]
    if last:
        arrays[:2] = [gpu.moveaxis(on(gpu, np.moveaxis(a, 1, -1).copy()), -1, 1) for a in (x, g)]
    dx, dg, dw, db = arrays
    out, mean, var = batch.batch_norm(dx, dw, db, 0.1)
    x, g = x.astype("f8"), g.astype("f8")
    axes, form = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
    middle, spread = x.mean(axes), x.var(axes)
    rstd = 1 / np.sqrt(spread + 0.1)
    unit = (x - middle.reshape(form)) * rstd.reshape(form)
    check(out, unit * w.reshape(form) + b.reshape(form), dtype, 8)
    check(mean, middle, wide, 2)
    check(var, spread, wide, 30)
    found = batch.d_batch_norm(dg, dx, dw, mean, var, 0.1)
    d_weight, d_bias = (g * unit).sum(axes), g.sum(axes)
    count = x.size / x.shape[1]
    slope = g - (d_bias / count).reshape(form) - unit * (d_weight / count).reshape(form)
    check(found[0], slope * (rstd * w).reshape(form), dtype, 30)
    check(found[1], d_weight, wide, 100)
    check(found[2], d_bias, wide, 100)
    if last and x.ndim == 4 and shape[2:] != (1, 1):
        assert gpu.moveaxis(out, 1, -1).flags.c_contiguous


def test_rows_that_32_bits_cannot_count_are_left_to_others(gpu, monkeypatch):
    from distgrad.backend.cuda import norm, softmax

    for module in (norm, softmax):
        monkeypatch.setattr(module, "LONGEST", 8)
    x = on(gpu, draw(3, 8))
    found = [
        softmax.softmax(x, -1), softmax.log_softmax(x, 1), norm.rms_norm(x, (8,), None, 0.1),
        norm.layer_norm(x, (8,), None, None, 0.1),
    ]  # fmt: skip
    assert all(one is NotImplemented for one in found)
    assert softmax.softmax(x, 0).shape == (3, 8)


def test_batch_norm_leaves_channels_to_others_that_32_bits_cannot_count(gpu, monkeypatch):
    from distgrad.backend.cuda import batch

    monkeypatch.setattr(batch, "_MOST_COUNTED", 12)
    x, mean = on(gpu, draw(4, 2, 3)), gpu.zeros(2, "f4")
    assert batch.batch_norm(x, None, None, 0.1) is NotImplemented
    assert batch.d_batch_norm(x, x, None, mean, mean, 0.1) is NotImplemented


@needs_compiler
def test_a_mean_far_from_zero_costs_the_variance_no_digits(gpu):
    from distgrad.backend.cuda import batch

    x = (draw(50, 4, 6) + 3000).astype("f4")
    _, _, var = batch.batch_norm(on(gpu, x), None, None, 1e-5)
    check(var, x.astype("f8").var((0, 2)), FLOAT, 10)


@needs_compiler
def test_running_statistics_move(gpu):
    from distgrad.backend.cuda import batch

    mean, var, new_mean, new_var = (on(gpu, a) for a in draw(4, 33))
    want = mean.get() * 0.75 + 0.25 * new_mean.get(), var.get() * 0.75 + 0.25 * new_var.get() * 2
    batch.move_statistics(mean, var, new_mean, new_var, 0.25, 2)
    np.testing.assert_allclose([mean.get(), var.get()], want, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------- softmax and losses
CUTS = [((3, 7), 1), ((2, 5000), 1), ((5, 64), -1), ((4, 6, 5), 1), ((9, 2), 0), ((1, 1), 1)]


def soft(x, axis):
    x = x.astype("f8")
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@needs_compiler
@pytest.mark.parametrize(("shape", "dim"), CUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax(gpu, dtype, shape, dim):
    from distgrad.backend.cuda import softmax

    x, g = draw(*shape, dtype=dtype) * dtype.type(4), draw(*shape, dtype=dtype, seed=1)
    p = soft(x, dim)
    out = softmax.softmax(on(gpu, x), dim)
    check(out, p, dtype, 2)
    log = softmax.log_softmax(on(gpu, x), dim)
    check(log, np.log(p), dtype, 2)
    p, g64 = out.get().astype("f8"), g.astype("f8")
    want = p * (g64 - (g64 * p).sum(dim, keepdims=True))
    check(softmax.softmax_backward(on(gpu, g), out, dim), want, dtype, 8)
    p = np.exp(log.get().astype("f8"))
    want = g64 - p * g64.sum(dim, keepdims=True)
    if np.linalg.norm(want) > 1e-3:
        check(softmax.log_softmax_backward(on(gpu, g), log, dim), want, dtype, 8)


@needs_compiler
@pytest.mark.parametrize("row", [[-np.inf] * 3, [np.nan, 1, 2], [np.inf, 1, 2]], ids=str)
def test_softmax_of_what_has_none_is_nan(gpu, row):
    from distgrad.backend.cuda import softmax

    x = np.asarray([row, [-np.inf, 0, -np.inf]], "f4")
    assert np.isnan(softmax.softmax(on(gpu, x), 1).get()).tolist() == [[True] * 3, [False] * 3]
    log = softmax.log_softmax(on(gpu, x), 1).get()
    assert np.isnan(log[0]).all() and log[1].tolist() == [-np.inf, 0, -np.inf]


@needs_compiler
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (3, 1200), (2, 4, 3)], ids=str)
@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
def test_cross_entropy(gpu, dtype, shape, weighted, smoothing, reduction):
    from distgrad.backend.cuda import softmax

    x = draw(*shape, dtype=dtype) * dtype.type(3)
    target = np.random.default_rng(0).integers(0, shape[1], (shape[0], *shape[2:]))
    target.reshape(-1)[1] = 1
    w = np.random.default_rng(1).random(shape[1]) + 0.5 if weighted else np.ones(shape[1])
    w = w.astype("f4")
    log = np.moveaxis(np.log(soft(x, 1)), 1, -1).reshape(-1, shape[1])
    labels = target.reshape(-1)
    counts = labels != 1
    each = w.astype("f8")[labels] * counts
    hit = -log[np.arange(len(labels)), labels] * each * (1 - smoothing)
    loss = hit - counts * (log @ w.astype("f8")) * smoothing / shape[1]
    whole = {"mean": loss.sum() / each.sum(), "sum": loss.sum(), "none": loss.reshape(target.shape)}
    arrays = on(gpu, x), on(gpu, target), on(gpu, w) if weighted else None
    found = softmax.cross_entropy(*arrays, reduction, 1, smoothing)
    check(found[0], np.asarray(whole[reduction]), dtype, 4)
    g = draw(*target.shape, dtype=dtype) if reduction == "none" else np.asarray(0.5, dtype)
    scale = (g.astype("f8").reshape(-1) / (each.sum() if reduction == "mean" else 1))[..., None]
    spread = smoothing / shape[1] * w.astype("f8") * counts[:, None]
    q = spread.copy()
    q[np.arange(len(labels)), labels] += each * (1 - smoothing)
    want = (np.exp(log) * q.sum(1, keepdims=True) - q) * scale
    want = np.moveaxis(want.reshape(*target.shape, shape[1]), -1, 1)
    gradient = softmax.d_cross_entropy(on(gpu, g), *arrays, *found[1:], reduction, 1, smoothing)
    check(gradient, want, dtype, 8)


# ---------------------------------------------------------------------- element by element
@needs_compiler
@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("size", [1, 8, 1001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations(gpu, dtype, size, shift):
    from distgrad.backend.cuda import activation

    x, g = draw(size, dtype=dtype) * dtype.type(3), draw(size, dtype=dtype, seed=1)
    x64, g64 = x.astype("f8"), g.astype("f8")
    s = 1 / (1 + np.exp(-x64))
    cdf = 0.5 * (1 + np.vectorize(math.erf)(x64 / math.sqrt(2)))
    density = np.exp(-x64 * x64 / 2) / math.sqrt(2 * math.pi)
    t = np.tanh(np.log1p(np.exp(x64)))
    dx, dg = on(gpu, x, shift), on(gpu, g, shift)
    for got, want in (
        (activation.positive(dx), np.maximum(x64, 0)),
        (activation.where_positive(dx, dg), g64 * (x64 > 0)),
        (activation.gelu(dx, "none"), x64 * cdf),
        (activation.d_gelu(dg, dx, "none"), g64 * (cdf + x64 * density)),
        (activation.silu(dx), x64 * s),
        (activation.d_silu(dg, dx), g64 * s * (1 + x64 * (1 - s))),
        (activation.mish(dx), x64 * t),
        (activation.d_mish(dg, dx), g64 * (t + x64 * s * (1 - t * t))),
    ):
        check(got, want, dtype, 4)


@needs_compiler
def test_channels_that_come_last_stay_there(gpu):
    from distgrad.backend.cuda import activation

    x = draw(2, 3, 4, 5)
    lying = gpu.moveaxis(on(gpu, np.moveaxis(x, 1, -1).copy()), -1, 1)
    out = activation.silu(lying)
    check(out, x / (1 + np.exp(-x.astype("f8"))), FLOAT)
    assert gpu.moveaxis(out, 1, -1).flags.c_contiguous
    gradient = activation.d_silu(on(gpu, x), lying)
    assert gpu.moveaxis(gradient, 1, -1).flags.c_contiguous


ROUND = """
KERNEL(32) to_halves(const float* x, half* h, bf16* b, float* back, long long n) {
  for (int i = threadIdx.x; i < n; i += 32) {
    h[i] = (half)x[i];
    b[i] = (bf16)x[i];
    back[i] = h[i];
  }
}
"""


@needs_compiler
def test_halves_are_rounded_as_numpy_rounds(gpu):
    x = np.concatenate(
        [
            draw(4000) * np.float32(10) ** np.arange(-8, 8).repeat(250),
            np.float32([0, -0.0, np.inf, -np.inf, 65504, 65519, 65520, 6e-8, 3e-8, 2.9802322e-8]),
        ]
    ).astype("f4")
    from distgrad.backend.cuda import module

    code = module.source("activation.cu").partition("typedef T_TYPE")[0] + ROUND
    h, b, back = (gpu.empty(x.size, t) for t in (HALF, BF16, FLOAT))
    run = gpu.RawModule(code=code).get_function("to_halves")
    run((1,), (32,), (on(gpu, x), h, b, back, x.size))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(h.get().view("u2"), x.astype("f2").view("u2"))
        np.testing.assert_array_equal(b.get().view("u2"), x.astype(BF16).view("u2"))
        np.testing.assert_array_equal(back.get(), x.astype("f2").astype("f4"))


# ---------------------------------------------------------------------- pooling
POOLS = [
    ((2, 3, 7), (2,), (2,), (1,), (1,)),
    ((1, 16, 9, 8), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((2, 3, 6, 7), (2, 3), (1, 2), (1, 0), (2, 1)),
    ((1, 2, 4, 5, 3), (2, 2, 3), (2, 1, 1), (0, 1, 1), (1, 1, 1)),
]


OPTIONS = ("kernel_size", "stride", "padding")


def with_grad(function, x, g):
    """The function of ``x`` on the host in float64, and the gradient for ``g``."""
    x = dg.tensor(x.astype("f8"), requires_grad=True)
    out = function(x)
    out.backward(dg.tensor(g.astype("f8")))
    return out.detach().numpy(), x.grad.numpy()


def windows_of(shape, kernel, stride, padding, dilation):
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(shape[2:], kernel, stride, padding, dilation, strict=True)
    )


@needs_compiler
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("form", POOLS, ids=lambda f: str(f[0]))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pooling(gpu, dtype, form, last):
    from distgrad.backend.cuda import pool

    shape, kernel, stride, padding, dilation = form
    dims = len(kernel)
    if last and dims == 1:
        pytest.skip("channels come last in images and volumes")
    out = windows_of(*form)
    x, g = draw(*shape, dtype=dtype), draw(*shape[:2], *out, dtype=dtype, seed=1)
    dx, dy = on(gpu, x), on(gpu, g)
    if last:
        dx, dy = (gpu.moveaxis(on(gpu, np.moveaxis(a, 1, -1).copy()), -1, 1) for a in (x, g))
    largest = getattr(F, f"max_pool{dims}d")
    want, d_want = with_grad(lambda x: largest(x, kernel, stride, padding, dilation), x, g)
    best, places = pool.max_pool(dx, kernel, stride, padding, dilation, out)
    check(best, want, dtype)
    windows = (kernel, stride, padding, dilation)
    check(pool.unpool_windows(dy, places, shape[2:], windows), d_want, dtype, 2)
    mean = getattr(F, f"avg_pool{dims}d")
    out = windows_of(shape, kernel, stride, padding, (1,) * dims)
    g = draw(*shape[:2], *out, dtype=dtype, seed=1)
    windows, options = (kernel, stride, padding, out), dict(zip(OPTIONS, form[1:4], strict=True))
    for with_padding in (False, True):
        count = partial(mean, count_include_pad=with_padding, **options)
        want, d_want = with_grad(count, x, g)
        check(pool.avg_pool(dx, windows, with_padding, None), want, dtype, 2)
        got = pool.avg_pool_input(on(gpu, g), shape[2:], windows, with_padding, None)
        check(got, d_want, dtype, 2)


@needs_compiler
def test_a_nan_is_the_largest_of_its_window(gpu):
    from distgrad.backend.cuda import pool

    x = np.asarray([[[1, np.nan, 3, 2, -np.inf, -np.inf]]], "f4")
    best, places = pool.max_pool(on(gpu, x), (2,), (2,), (0,), (1,), (3,))
    np.testing.assert_array_equal(best.get(), [[[np.nan, 3, -np.inf]]])
    assert places.tolist() == [[[1, 2, 4]]]


# ---------------------------------------------------------------------- random numbers
@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_numbers_have_their_distributions(gpu, dtype):
    from distgrad.backend.cuda.random import Source

    n = 20_001
    source = Source(Generator().manual_seed(3), None)
    uniform = source.uniform((n,), dtype, -1.0, 3.0).get().astype("f8")
    assert -1 <= uniform.min() < -0.99 and 2.9 < uniform.max() < 3
    assert abs(uniform.mean() - 1) < 0.03 and abs(uniform.std() - 4 / 12**0.5) < 0.03
    normal = source.normal((n,), dtype, 2.0, 0.5).get().astype("f8")
    assert abs(normal.mean() - 2) < 0.02 and abs(normal.std() - 0.5) < 0.02
    inside = [np.mean(abs(normal - 2) < 0.5 * k) for k in (1, 2, 3)]
    np.testing.assert_allclose(inside, [0.6827, 0.9545, 0.9973], atol=0.01)
    times = source.exponential((n,), dtype, 2.0).get().astype("f8")
    assert times.min() >= 0 and abs(np.mean(times > 0.5) - math.exp(-1)) < 0.015
    drawn = source.bernoulli_of(on(gpu, np.full(n, 0.3, dtype))).get()
    assert drawn.dtype == bool and abs(drawn.mean() - 0.3) < 0.015
    dice = source.integers((n,), dtype, 1, 7).get().astype("f8")
    np.testing.assert_allclose(np.bincount(dice.astype(int)) / n, [0, *[1 / 6] * 6], atol=0.01)


@needs_compiler
def test_normal_numbers_have_the_hosts_bits(gpu):
    from distgrad.backend import philox
    from distgrad.backend import random as host
    from distgrad.backend.cuda.random import Source

    n = 4096
    got = Source(Generator().manual_seed(3), None).normal((n,), FLOAT).get()
    words = philox.words(n, Generator().manual_seed(3).ticket())
    u = ((words >> 8).astype("f4") * np.float32(2**-24)).reshape(-1, 2)
    radius = np.sqrt(np.float32(-2) * host._log(np.float32(1) - u[:, 0]))
    sine, cosine = host._sin_cos(np.float32(2 * math.pi) * u[:, 1])
    np.testing.assert_array_equal(got, np.stack([radius * cosine, radius * sine], 1).reshape(-1))


@needs_compiler
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [1, 6, 1003])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_keeps_what_the_words_say(gpu, dtype, size, shift):
    from distgrad.backend import philox
    from distgrad.backend.cuda import random

    x, key = draw(size, dtype=dtype), 2**63 + 12345
    kept = philox.words(size, key, 7) >= 0.3 * 2**32
    out = random.dropout(on(gpu, x, shift), 0.3, (0, key - 2**64, 7))
    check(out, np.where(kept, x.astype("f8") / 0.7, 0), dtype, 2)
    state = on(gpu, np.array([key - 2**64]))
    again = random.dropout(on(gpu, x, shift), 0.3, (state, 0, 7))
    assert again.get().tobytes() == out.get().tobytes()
    assert not random.dropout(on(gpu, x, shift), 1.0, (0, key - 2**64, 7)).get().any()


# ---------------------------------------------------------------------- tables
@needs_compiler
@pytest.mark.parametrize("by_count", [False, True])
@pytest.mark.parametrize(
    ("count", "rows", "width"),
    [(1, 1, 1), (5, 4, 3), (7000, 70000, 2), (2500, 3, 8), (300, 300, 40)],
)
@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
def test_embedding(gpu, dtype, count, rows, width, by_count):
    from distgrad.backend.cuda import embed

    rng = np.random.default_rng(0)
    index = rng.zipf(1.3, count) % rows
    table, g = draw(rows, width, dtype=dtype), draw(count, width, dtype=dtype, seed=1)
    got = embed.embedding_rows(on(gpu, index), on(gpu, table))
    np.testing.assert_array_equal(got.get(), table[index])
    padding = 0 if rows > 1 else None
    want = np.zeros((rows, width))
    np.add.at(want, index, g.astype("f8"))
    if by_count:
        want /= np.maximum(np.bincount(index, minlength=rows), 1)[:, None]
    if padding is not None:
        want[padding] = 0
    runs = [
        embed.embedding_backward(on(gpu, g), on(gpu, index), rows, padding, by_count)
        for _ in range(2)
    ]
    check(runs[0], want, dtype, 4)
    assert runs[0].get().tobytes() == runs[1].get().tobytes()  # in another order of threads


# ---------------------------------------------------------------------- the emulator itself
KERNELS = r"""
extern "C" __global__ void race(const float* x, float* y) {
  __shared__ float room[128];
  room[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = room[127 - threadIdx.x];  // nobody has waited for it
}
extern "C" __global__ void swap(const float* x, float* y) {
  __shared__ float room[128];
  room[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = room[127 - threadIdx.x];
}
extern "C" __global__ void ahead(const float* x, float* y) {
  __shared__ float room[4];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (int k = 0; k < 3; k++) {
    if (lane == 0) room[warp] = x[4 * k + warp];  // a slow warp may still read the last one
    __syncthreads();
    float mine = room[lane & 3];
    for (int by = 16; by; by >>= 1) mine += __shfl_xor_sync(0xffffffffu, mine, by);
    if (lane == 0) y[4 * k + warp] = mine / 8;
  }
}
extern "C" __global__ void stuck() {
  if (threadIdx.x == 0) __syncthreads();
  else __syncwarp();
}
extern "C" __global__ void alone(float* y) {
  if (threadIdx.x < 5) return;
  y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}
extern "C" __global__ void narrow(int n) {}
extern "C" __global__ void late(float* y) {
  __shared__ float room[32];
  if (blockIdx.x == 0) room[threadIdx.x] = 1.0f;
  if (blockIdx.x == 1) y[threadIdx.x] = room[threadIdx.x];  // another block's
}
extern "C" __global__ void wide(long long n) {
  DYNAMIC_SHARED(float, room);
  room[n] = 1.0f;
}
extern "C" __global__ void sums(float* y, long long* all, double scale) {
  float mine = threadIdx.x;
  for (int by = 16; by; by >>= 1) mine += __shfl_down_sync(0xffffffffu, mine, by);
  if (threadIdx.x % 32 == 0) atomicAdd(y, mine * (float)scale);
  if (__ballot_sync(0xffffffffu, threadIdx.x % 2) != 0xaaaaaaaau) atomicAdd(all, 1ll);
}
"""


@pytest.fixture
def kernels(gpu):
    return gpu.RawModule(code=KERNELS).get_function


@needs_compiler
def test_a_truth_value_is_no_argument(gpu, kernels):
    with pytest.raises(TypeError, match="argument 0 is bool"):  # CuPy writes one byte of eight
        kernels("wide")((1,), (32,), (True,), shared_mem=64)


@needs_compiler
def test_a_missing_barrier_is_seen(gpu, kernels):
    x, wrong = draw(128), 0
    for _ in range(4):
        y = on(gpu, x)
        kernels("race")((1,), (128,), (on(gpu, x), y))
        wrong += not np.array_equal(y.get(), x[::-1])
        kernels("swap")((1,), (128,), (on(gpu, x), y))
        assert np.array_equal(y.get(), x[::-1])
    assert wrong


@needs_compiler
def test_a_barrier_missing_before_the_next_turn_is_seen(gpu, kernels):
    x, wrong = draw(12), 0
    want = x.reshape(3, 4).sum(1).repeat(4)
    for _ in range(8):
        y = on(gpu, x)
        kernels("ahead")((1,), (128,), (on(gpu, x), y))
        wrong += not np.allclose(y.get(), want, atol=1e-5)
    assert wrong


@needs_compiler
def test_shared_memory_keeps_nothing_from_block_to_block(gpu, kernels):
    y = gpu.zeros(32, "f4")
    kernels("late")((2,), (32,), (y,))
    assert not (y.get() == 1).any()


@needs_compiler
def test_what_a_device_could_not_go_on_from_is_refused(gpu, kernels):
    for name, arguments, words in (
        ("stuck", (), "others never reach"),
        ("alone", (gpu.empty(64, "f4"),), "without all lanes"),
        ("narrow", (1,), "its type '\\?'"),
        ("swap", (1.0, 0), "its type 'P'"),
        ("swap", (0,), "takes 2 arguments, got 1"),
        ("wide", (16,), "written behind the dynamic shared memory"),
    ):
        with pytest.raises((RuntimeError, TypeError), match=words):
            kernels(name)((1,), (64,), arguments, shared_mem=64)
    with pytest.raises(ValueError, match="no whole warps"):
        kernels("swap")((1,), (100,), (0, 0))
    with pytest.raises(RuntimeError, match="InvalidValue"):
        kernels("swap")((1,), (2048,), (0, 0))
    with pytest.raises(RuntimeError, match="SymbolNotFound"):
        kernels("missing")
    y, all_ = gpu.zeros(1, "f4"), gpu.zeros(1, "i8")  # and what comes next still works
    kernels("sums")((2,), (64,), (y, all_, 0.5))
    assert y.tolist() == [2016.0] and all_.tolist() == [0]


# ---------------------------------------------------------------------- for real GPUs
@pytest.mark.gpu_libraries
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kind", ["float", "half", "bf16", "double"])
def test_all_kernels_compile_for_gpus_without_spilling(architecture, kind):
    """With CuPy's NVRTC, which needs no GPU; in a process of its own, for here CuPy stands in."""
    ask = "from cupy.cuda import nvrtc; nvrtc.getVersion()"
    found = subprocess.run([sys.executable, "-c", ask], capture_output=True)
    if found.returncode:
        pytest.skip("CuPy with NVRTC is not installed")
    command = [sys.executable, "-m", "distgrad.testing.compile_kernels", architecture, kind]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    assert done.stdout.count(" registers") > 40
