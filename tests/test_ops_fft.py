"""Fourier transforms and gradients of complex numbers, beside PyTorch's."""

import numpy as np
import pytest

import distgrad as dg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

_rng = np.random.default_rng(0)


def _real(*shape):
    return _rng.standard_normal(shape)


def _complex(*shape):
    return _real(*shape) + 1j * _real(*shape)


def _array(tensor):
    return tensor.detach().resolve_conj().numpy()


def _agree(call, *arrays, second=False):
    """Compare values, gradients and optionally second derivatives of ``call(library, …)``."""
    xs = [dg.tensor(a, requires_grad=True) for a in arrays]
    ts = [torch.tensor(a, requires_grad=True) for a in arrays]
    out, want = call(dg, *xs), call(torch, *ts)
    assert out.shape == tuple(want.shape)
    assert str(out.array.dtype) == str(want.dtype).removeprefix("torch.")
    np.testing.assert_allclose(out.array, _array(want), rtol=1e-9, atol=1e-12)
    g = _complex(*out.shape) if out.is_complex() else _real(*out.shape)
    got = dg.grad(out, xs, dg.tensor(g), create_graph=second)
    wants = torch.autograd.grad(want, ts, torch.tensor(g), create_graph=second)
    for a, b in zip(got, wants, strict=True):
        assert str(a.array.dtype) == str(b.dtype).removeprefix("torch.")
        np.testing.assert_allclose(a.array, _array(b), rtol=1e-9, atol=1e-12)
    if second:
        ours = dg.grad(sum((a.abs() ** 2).sum() for a in got), xs, allow_unused=True)
        theirs = torch.autograd.grad(sum((b.abs() ** 2).sum() for b in wants), ts)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.array, _array(b), rtol=1e-8, atol=1e-10)
    leaves = call(dg, *xs)
    leaves.backward(dg.tensor(g))
    for x, a in zip(xs, got, strict=True):
        np.testing.assert_allclose(x.grad.array, a.array, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("norm", [None, "ortho", "forward"])
@pytest.mark.parametrize("n", [None, 4, 7])
@pytest.mark.parametrize("name", ["fft", "ifft", "rfft", "irfft", "hfft", "ihfft"])
def test_one_dimension(name, n, norm):
    makes = {"rfft": [_real], "ihfft": [_real], "fft": [_real, _complex]}
    for make in makes.get(name, [_complex]):
        _agree(lambda lib, x: getattr(lib.fft, name)(x, n, 0, norm), make(5, 3))


@pytest.mark.parametrize("norm", [None, "ortho", "forward"])
@pytest.mark.parametrize(
    "name", [r + k for r in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft") for k in "2n"]
)
def test_several_dimensions(name, norm):
    make = _real if name.startswith(("rfft", "ihfft")) else _complex
    _agree(lambda lib, x: getattr(lib.fft, name)(x, norm=norm), make(3, 4, 5))
    _agree(lambda lib, x: getattr(lib.fft, name)(x, (6, 3), (1, 0), norm), make(3, 4, 2))


@pytest.mark.parametrize("shape", [(4,), (5,), (1,)])
def test_frequencies_and_shifts(shape):
    n = shape[0]
    for name in ("fftfreq", "rfftfreq"):
        ours = getattr(dg.fft, name)(n, 0.3)
        theirs = getattr(torch.fft, name)(n, 0.3)
        np.testing.assert_allclose(ours.array, theirs.numpy(), rtol=1e-6)
        assert ours.dtype == dg.float32
    for name in ("fftshift", "ifftshift"):
        _agree(lambda lib, x, name=name: getattr(lib.fft, name)(x), _real(*shape, 3))
        _agree(lambda lib, x, name=name: getattr(lib.fft, name)(x, 0), _real(*shape, 3))


def test_dtypes():
    assert dg.fft.fft(dg.ones(4)).dtype == dg.complex64
    assert dg.fft.rfft(dg.ones(4, dtype=dg.float64)).dtype == dg.complex128
    assert dg.fft.irfft(dg.fft.rfft(dg.ones(4))).dtype == dg.float32
    assert dg.fft.fft(dg.arange(4)).dtype == dg.complex64


@pytest.mark.parametrize(
    "call",
    [
        lambda x: dg.fft.fft(x, 0),
        lambda x: dg.fft.fft(x, norm="no"),
        lambda x: dg.fft.fftn(x, (2, 2, 2)),
        lambda x: dg.fft.fftn(x, (2,), (0, 1)),
        lambda x: dg.fft.rfft(dg.fft.fft(x)),
        lambda x: dg.fft.fftn(x, dim=(0, 0)),
        lambda x: dg.fft.fft(x.half()),
    ],
)
def test_mistakes_are_runtime_errors(call):
    with pytest.raises(RuntimeError):
        call(dg.ones(2, 3))


def test_dimension_out_of_range():
    with pytest.raises(IndexError):
        dg.fft.fft(dg.ones(3), dim=1)


@pytest.mark.parametrize(
    "call",
    [
        lambda lib, x, y: x * y,
        lambda lib, x, y: x / y,
        lambda lib, x, y: (x * x.conj() + y).abs(),
        lambda lib, x, y: x.exp() - y.sin() * y.cos(),
        lambda lib, x, y: x.real * y.imag + y.abs(),
        lambda lib, x, y: x.angle() * y,
        lambda lib, x, y: x.sgn() + y * y,
        lambda lib, x, y: x @ y,
        lambda lib, x, y: lib.complex(x.real, y.real) * x,
        lambda lib, x, y: (x.sum(0) * y).mean(),
        lambda lib, x, y: x.log() * y.sqrt(),
        lambda lib, x, y: lib.where(x.real > 0, x, y) ** 2,
        lambda lib, x, y: lib.cat([x, y]).reshape(-1).cumsum(0) ** 2,
        lambda lib, x, y: x.tanh() + y.reciprocal(),
        lambda lib, x, y: lib.fft.ifft(lib.fft.fft(x) * y),
    ],
)
def test_gradients_of_complex_numbers(call):
    _agree(call, _complex(3, 3), _complex(3, 3), second=True)


def test_real_operands_beside_complex_ones_get_real_gradients():
    _agree(lambda lib, x, y: x * y, _real(3), _complex(2, 3))
    _agree(lambda lib, x, y: (x @ y).abs(), _complex(2, 3), _complex(3, 2))


def test_hooks_see_gradients_as_pytorch_has_them():
    seen = []
    x = dg.tensor(np.array([1 + 2j]), requires_grad=True)
    y = x * 1j
    y.register_hook(lambda g: seen.append(g.array.copy()))
    (y * (2 + 1j)).imag.sum().backward()
    t = torch.tensor(np.array([1 + 2j]), requires_grad=True)
    want = []
    z = t * 1j
    z.register_hook(lambda g: want.append(g.resolve_conj().numpy().copy()))
    (z * (2 + 1j)).imag.sum().backward()
    np.testing.assert_allclose(seen[0], want[0])
    np.testing.assert_allclose(x.grad.array, t.grad.resolve_conj().numpy())
