"""nn.functional beside PyTorch: random windows, heads, modes by number, dtypes that are refused."""

import warnings

import numpy as np
import pytest

import distgrad as dg
from distgrad.nn import functional as F
from distgrad.testing.torch_pairs import draw, tensor


def _pair(torch, *arrays):
    ours = [tensor(a).requires_grad_() for a in arrays]
    theirs = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    return ours, theirs


def _close(got, want, tolerance=1e-10):
    np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), tolerance, tolerance)


@pytest.mark.torch
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("size", ["output_size", "output_ratio"])
def test_fractional_pooling_draws_the_windows_of_torch(dims, size):
    torch = pytest.importorskip("torch")
    (x,), (y,) = _pair(torch, draw(2, 3, *(9, 8, 7)[:dims]))
    name = f"fractional_max_pool{dims}d"
    options = {size: 4 if size == "output_size" else (0.6,) * dims, "return_indices": True}
    dg.manual_seed(3)
    torch.manual_seed(3)
    got, places = getattr(F, name)(x, 2, **options)
    want, expected = getattr(torch.nn.functional, name)(y, 2, **options)
    _close(got, want)
    assert (places.numpy() == expected.numpy()).all()
    got.sum().backward()
    want.sum().backward()
    _close(x.grad, y.grad)


def test_fractional_pooling_takes_one_of_size_and_ratio():
    with pytest.raises(ValueError, match="exactly one"):
        dg.nn.FractionalMaxPool2d(2)
    with pytest.raises(ValueError, match="either an output_size or an output_ratio"):
        F.fractional_max_pool2d(dg.ones(1, 1, 4, 4), 2)
    with pytest.raises(RuntimeError, match="too large"):
        F.fractional_max_pool2d(dg.ones(1, 1, 4, 4), 2, 4)


@pytest.mark.filterwarnings("ignore:Support for mismatched")  # by torch
@pytest.mark.torch
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("single", [True, False])
def test_attention_of_heads_agrees_with_torch(need_weights, zero, single):
    torch = pytest.importorskip("torch")
    q, k = draw(3, 2, 4), draw(5, 2, 4)
    mask, padding = draw(3, 5), np.array([[False] * 5, [False, True, False, False, True]])
    if single:
        q, k, padding = q[:, 0], k[:, 0], padding[1]
    results = []
    weights = [draw(12, 4), draw(12), draw(1, 1, 4), draw(1, 1, 4), draw(4, 4), draw(4)]
    for functional, make in ((F, tensor), (torch.nn.functional, torch.from_numpy)):
        w, b, bias_k, bias_v, out_w, out_b = map(make, weights)
        results.append(
            functional.multi_head_attention_forward(
                make(q), make(k), make(k), 4, 2, w, b, bias_k, bias_v, zero, 0.0, out_w, out_b,
                key_padding_mask=make(padding), attn_mask=make(mask), need_weights=need_weights,
            )
        )  # fmt: skip
    (got, got_weights), (want, want_weights) = results
    _close(got, want)
    if need_weights:
        _close(got_weights, want_weights)
    else:
        assert got_weights is None


@pytest.mark.torch
def test_linear_cross_entropy_is_linear_and_cross_entropy():
    torch = pytest.importorskip("torch")
    labels = np.array([[0, 2], [1, -100], [2, 2]])
    arrays = draw(3, 4), draw(3, 2, 4), draw(3, 2)
    (x, w, b), (tx, tw, tb) = _pair(torch, *arrays)
    got = F.linear_cross_entropy(x, w, tensor(labels), linear_bias=b, label_smoothing=0.1)
    want = torch.nn.functional.linear_cross_entropy(
        tx, tw, torch.from_numpy(labels), linear_bias=tb, label_smoothing=0.1
    )
    got.backward()
    want.backward()
    _close(got, want)
    _close(w.grad, tw.grad)
    layer = dg.nn.LinearCrossEntropyLoss(4, 3, out_features=(2,), bias=True)
    assert layer(tensor(arrays[0].astype("f")), tensor(labels)).shape == ()


@pytest.mark.torch
@pytest.mark.parametrize(("stride", "dilation", "more"), [(1, 2, 1), (2, 4, 3), (3, 4, 2)])
def test_transposed_convolution_may_reach_beyond_its_windows(stride, dilation, more):
    torch = pytest.importorskip("torch")
    (x, w), (tx, tw) = _pair(torch, draw(2, 3, 4), draw(3, 2, 3))
    options = {"stride": stride, "dilation": dilation, "output_padding": more}
    got = F.conv_transpose1d(x, w, **options)
    want = torch.nn.functional.conv_transpose1d(tx, tw, **options)
    (got * got).sum().backward()
    (want * want).sum().backward()
    _close(got, want)
    _close(x.grad, tx.grad)
    _close(w.grad, tw.grad)


@pytest.mark.torch
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
def test_bytes_are_resampled_in_whole_numbers(mode, antialias):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 9, 11)).astype(np.uint8)
    options = {"size": (5, 17), "mode": mode, "antialias": antialias}
    want = torch.nn.functional.interpolate(torch.from_numpy(x), **options)
    assert (F.interpolate(tensor(x), **options).numpy() == want.numpy()).all()


@pytest.mark.torch
@pytest.mark.parametrize("pad", [(-1, 2), (2, -1), (-2, -1), (-1, 1, -2, 1)])
@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_negative_padding_cuts_first(pad, mode):
    torch = pytest.importorskip("torch")
    x = draw(1, 2, 5, 4)[:, :, : None if len(pad) == 4 else 1].squeeze(2 if len(pad) == 2 else ())
    want = torch.nn.functional.pad(torch.from_numpy(x), pad, mode)
    _close(F.pad(tensor(x), pad, mode), want)


@pytest.mark.torch
def test_native_norms_return_their_statistics():
    torch = pytest.importorskip("torch")
    x, w = draw(2, 4, 3), draw(4)
    running = [np.zeros(4), np.ones(4)]
    ours = [tensor(a) for a in (x, w, w, *running)]
    theirs = [torch.from_numpy(a.copy()) for a in (x, w, w, *running)]
    results = [
        (
            module.native_batch_norm(*operands, True, 0.3, 1e-5),
            module.native_group_norm(*operands[:3], 2, 4, 3, 2, 1e-5),
            module.native_layer_norm(operands[0], (3,), None, None, 1e-5),
        )
        for module, operands in ((dg, ours), (torch, theirs))
    ]
    for got, want in zip(*results, strict=True):
        for g, t in zip(got, want, strict=True):
            _close(g, t)
    _close(ours[4], theirs[4])


@pytest.mark.torch
def test_grids_are_sampled_by_the_numbers_of_modes():
    torch = pytest.importorskip("torch")
    x, grid = draw(2, 3, 5, 4), draw(2, 3, 2, 2)
    for mode in range(3):
        for padding in range(3):
            want = torch.grid_sampler_2d(*map(torch.from_numpy, (x, grid)), mode, padding, True)
            _close(dg.grid_sampler_2d(tensor(x), tensor(grid), mode, padding, True), want)


@pytest.mark.torch
def test_averages_of_integers_are_rounded_towards_zero():
    torch = pytest.importorskip("torch")
    x = np.arange(-9, 9).reshape(1, 1, 18)
    for include in (True, False):
        options = {"kernel_size": 4, "stride": 3, "padding": 1, "count_include_pad": include}
        want = torch.nn.functional.avg_pool1d(torch.from_numpy(x), **options)
        assert (F.avg_pool1d(tensor(x), **options).numpy() == want.numpy()).all()


@pytest.mark.torch
@pytest.mark.parametrize("name", ["cosine_similarity", "gaussian_nll_loss"])
def test_limits_do_not_stop_gradients(name):
    torch = pytest.importorskip("torch")
    small = draw(3, 4) * 1e-9
    (x, y), (tx, ty) = _pair(torch, small, np.abs(small) if name[0] == "g" else draw(3, 4))
    more = (y, y) if name[0] == "g" else (y,)
    theirs = (ty, ty) if name[0] == "g" else (ty,)
    getattr(F, name)(x, *more).sum().backward()
    getattr(torch.nn.functional, name)(tx, *theirs).sum().backward()
    _close(x.grad, tx.grad, 1e-8)
    _close(y.grad, ty.grad, 1e-8)


def _whole(*shape):
    return dg.ones(*shape, dtype=dg.int32)


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.max_pool1d(_whole(1, 1, 4), 2),
        lambda: F.avg_pool2d(_whole(1, 1, 4, 4), 2),
        lambda: F.adaptive_avg_pool2d(_whole(1, 1, 4, 4), 2),
        lambda: F.conv2d(_whole(1, 1, 4, 4), _whole(1, 1, 2, 2)),
        lambda: F.layer_norm(_whole(2, 3), (3,)),
        lambda: F.rms_norm(_whole(2, 3), (3,)),
        lambda: F.batch_norm(_whole(2, 3), None, None, training=True),
        lambda: F.mse_loss(_whole(2), _whole(2)),
        lambda: F.binary_cross_entropy(_whole(2), _whole(2)),
        lambda: F.grid_sample(_whole(1, 1, 2, 2), _whole(1, 1, 1, 2), align_corners=True),
        lambda: F.interpolate(_whole(1, 1, 4, 4), 2),
        lambda: F.scaled_dot_product_attention(*[_whole(2, 3)] * 3),
        lambda: F.unfold(_whole(1, 1, 4, 4), 2),
        lambda: F.pad(dg.ones(1, 1, 4) > 0, (1, 1), "reflect"),
    ],
)
def test_a_dtype_without_a_kernel_is_not_implemented(call):
    with warnings.catch_warnings(), pytest.raises(NotImplementedError):
        warnings.simplefilter("ignore")
        call()
