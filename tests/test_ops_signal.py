"""Short-time Fourier transforms and windows, beside PyTorch's."""

import warnings

import numpy as np
import pytest

import distgrad as dg

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:A window was not", "ignore:stft with return_complex"),
]

_rng = np.random.default_rng(0)


def _pair(array, tracks=False):
    return dg.tensor(array, requires_grad=tracks), torch.tensor(array, requires_grad=tracks)


def _agree(got, want):
    assert str(got.dtype).removeprefix("distgrad") == str(want.dtype).removeprefix("torch")
    np.testing.assert_allclose(got.detach().numpy(), want.detach().resolve_conj().numpy(),
                               1e-6, 1e-9)  # fmt: skip


FORMS = [
    {}, {"hop_length": 3}, {"win_length": 8}, {"center": False}, {"pad_mode": "constant"},
    {"normalized": True}, {"onesided": False}, {"center": False, "win_length": 8},
    {"center": False, "win_length": 8, "align_to_window": True},
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("windowed", [False, True])
def test_stft_and_its_gradients(form, windowed):
    x, tx = _pair(_rng.standard_normal((2, 50)), tracks=True)
    w, tw = _pair(_rng.uniform(0.5, 1, form.get("win_length", 12)), tracks=True)
    extra = {"window": w} if windowed else {}
    textra = {"window": tw} if windowed else {}
    got = dg.stft(x, 12, return_complex=True, **form, **extra)
    want = torch.stft(tx, 12, return_complex=True, **form, **textra)
    _agree(got, want)
    (got.real * got.imag + got.real).sum().backward()
    (want.real * want.imag + want.real).sum().backward()
    _agree(x.grad, tx.grad)
    if windowed:
        _agree(w.grad, tw.grad)


def test_stft_of_a_vector_of_complex_numbers_and_as_pairs():
    x, tx = _pair(_rng.standard_normal(40) + 1j * _rng.standard_normal(40))
    _agree(x.stft(16), tx.stft(16))
    real, treal = _pair(_rng.standard_normal(40))
    _agree(dg.stft(real, 16, return_complex=False), torch.stft(treal, 16, return_complex=False))


@pytest.mark.parametrize("form", FORMS[:3] + FORMS[5:7] + [{"length": 30}], ids=str)
def test_istft_gives_the_signal_back_and_its_gradients(form):
    signal = _rng.standard_normal((2, 48))
    window = np.hanning(form.get("win_length", 12) + 2)[1:-1]
    options = {k: v for k, v in form.items() if k != "length"}
    (w, tw), s = _pair(window, tracks=True), dg.tensor(signal)
    x = dg.stft(s, 12, window=w.detach(), return_complex=True, **options).requires_grad_()
    tx = torch.tensor(x.detach().numpy(), requires_grad=True)
    got = dg.istft(x, 12, window=w, **form)
    want = torch.istft(tx, 12, window=tw, **form)
    _agree(got, want)
    np.testing.assert_allclose(got.detach().numpy(), signal[:, : got.shape[1]], 1e-7, 1e-9)
    (got**2).sum().backward()
    (want**2).sum().backward()
    _agree(x.grad, tx.grad)
    _agree(w.grad, tw.grad)


def test_istft_fills_up_to_a_longer_length_and_warns():
    x = dg.stft(dg.ones(20), 8, window=dg.ones(8), return_complex=True)
    with pytest.warns(UserWarning, match="shorter than the length parameter"):
        assert dg.istft(x, 8, window=dg.ones(8), length=30)[25:].tolist() == [0.0] * 5


REFUSED = [
    lambda lib, x, s: lib.stft(x, 16),
    lambda lib, x, s: lib.stft(x, 0, return_complex=True),
    lambda lib, x, s: lib.stft(x, 60, center=False, return_complex=True),
    lambda lib, x, s: lib.stft(x, 16, hop_length=0, return_complex=True),
    lambda lib, x, s: lib.stft(x, 16, win_length=20, return_complex=True),
    lambda lib, x, s: lib.stft(x, 16, window=lib.ones(15), return_complex=True),
    lambda lib, x, s: lib.stft(x, 16, align_to_window=True, return_complex=True),
    lambda lib, x, s: lib.stft(x, 16, pad_mode="bad", return_complex=True),
    lambda lib, x, s: lib.stft(x.to(lib.complex64), 16, onesided=True),
    lambda lib, x, s: lib.stft(x.long(), 16, return_complex=True),
    lambda lib, x, s: lib.stft(x.half(), 16, return_complex=True),
    lambda lib, x, s: lib.istft(x, 16),
    lambda lib, x, s: lib.istft(s, 20),
    lambda lib, x, s: lib.istft(s, 16, hop_length=17),
    lambda lib, x, s: lib.istft(s, 16, win_length=17),
    lambda lib, x, s: lib.istft(s, 16, window=lib.zeros(16)),
    lambda lib, x, s: lib.istft(s, 16, window=lib.ones(15)),
    lambda lib, x, s: lib.istft(s, 16, onesided=False),
    lambda lib, x, s: lib.istft(s, 16, return_complex=True),
    lambda lib, x, s: lib.istft(s[:, :0], 16),
    lambda lib, x, s: lib.signal.windows.hann(-1),
    lambda lib, x, s: lib.signal.windows.hann(3, dtype=lib.float16),
    lambda lib, x, s: lib.signal.windows.exponential(3, center=1.0),
    lambda lib, x, s: lib.signal.windows.exponential(3, tau=0),
    lambda lib, x, s: lib.signal.windows.gaussian(3, std=-1),
    lambda lib, x, s: lib.signal.windows.kaiser(3, beta=-1),
    lambda lib, x, s: lib.signal.windows.general_cosine(3, a=1.0),
    lambda lib, x, s: lib.signal.windows.general_cosine(3, a=[]),
    lambda lib, x, s: lib.hann_window(-1),
    lambda lib, x, s: lib.hann_window(2.5),
    lambda lib, x, s: lib.hann_window(3, dtype=lib.int64),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_pytorch_refuses_is_refused_by_the_same_class(number):
    array = _rng.standard_normal(40).astype("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, tx = _pair(array)
        s, ts = (lib.stft(t, 16, return_complex=True) for lib, t in ((dg, x), (torch, tx)))
        with pytest.raises(Exception) as theirs:
            REFUSED[number](torch, tx, ts)
        with pytest.raises(theirs.type):
            REFUSED[number](dg, x, s)


WINDOWS = {
    "bartlett": {}, "blackman": {}, "cosine": {}, "exponential": {"tau": 2.5},
    "gaussian": {"std": 1.5}, "general_cosine": {"a": [0.5, 0.3, 0.2]},
    "general_hamming": {"alpha": 0.6}, "hamming": {}, "hann": {}, "kaiser": {"beta": 5.0},
    "nuttall": {},
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("sym", [True, False])
def test_windows(name, sym):
    for length in (0, 1, 2, 7, 12):
        options = WINDOWS[name] | {"sym": sym}
        got, want = (
            getattr(lib.signal.windows, name)(length, dtype=lib.float64, **options)
            for lib in (dg, torch)
        )
        _agree(got, want)


@pytest.mark.parametrize("name", ["hann", "hamming", "blackman", "bartlett", "kaiser"])
@pytest.mark.parametrize("periodic", [True, False])
def test_windows_by_their_older_names(name, periodic):
    for length in (0, 1, 2, 9):
        got, want = (
            getattr(lib, f"{name}_window")(length, periodic, dtype=lib.float64)
            for lib in (dg, torch)
        )
        _agree(got, want)
    assert dg.hann_window(4, requires_grad=True).requires_grad
    out = dg.empty(5, dtype=dg.float64)
    assert dg.kaiser_window(5, False, 8.0, out=out) is out
