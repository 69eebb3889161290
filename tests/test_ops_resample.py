"""Interpolation, sampling at points, windows: sizes, scales and mistakes beyond the samples."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.errors import ArgumentError, ShapeError
from distgrad.nn import functional as F
from distgrad.testing.torch_pairs import agree, draw

torch = pytest.importorskip("torch")
TF = torch.nn.functional
pytestmark = pytest.mark.torch

_SIZES = [
    ((7, 5), (7, 5)),
    ((7, 5), (14, 10)),
    ((7, 5), (3, 11)),
    ((1, 4), (5, 1)),
    ((9, 8), (2, 3)),
]
_MODES = [
    ("nearest", None, False), ("nearest-exact", None, False), ("area", None, False),
    ("bilinear", False, False), ("bilinear", True, False), ("bicubic", False, False),
    ("bicubic", True, False), ("bilinear", False, True), ("bicubic", False, True),
    ("bilinear", True, True), ("bicubic", True, True),
]  # fmt: skip


@pytest.mark.parametrize("sizes", _SIZES)
@pytest.mark.parametrize(("mode", "align", "antialias"), _MODES)
def test_interpolate_to_sizes(sizes, mode, align, antialias):
    space, size = sizes
    options = {"size": size, "mode": mode, "align_corners": align, "antialias": antialias}
    agree(
        lambda x: F.interpolate(x, **options), lambda x: TF.interpolate(x, **options),
        draw(2, 3, *space),
    )  # fmt: skip


@pytest.mark.parametrize("factor", [2, 0.5, 1.3, 0.77, (2.5, 0.4)])
@pytest.mark.parametrize("recompute", [None, True])
@pytest.mark.parametrize(("mode", "align", "antialias"), _MODES)
def test_interpolate_by_factors(factor, recompute, mode, align, antialias):
    options = {
        "scale_factor": factor, "mode": mode, "align_corners": align, "antialias": antialias,
        "recompute_scale_factor": recompute,
    }  # fmt: skip
    agree(
        lambda x: F.interpolate(x, **options), lambda x: TF.interpolate(x, **options),
        draw(2, 1, 6, 9),
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic"])
def test_float32_chooses_the_neighbours_of_torch(mode):
    x = np.arange(4.0 * 37, dtype=np.float32).reshape(1, 1, 4, 37)
    for factor in (1.1, 2.3, 3.7, 0.3):
        ours = F.interpolate(dg.tensor(x), scale_factor=factor, mode=mode).array
        theirs = TF.interpolate(torch.tensor(x), scale_factor=factor, mode=mode).numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-3)


def test_old_names_warn():
    x = dg.ones(1, 1, 2, 2)
    with pytest.warns(UserWarning, match="deprecated"):
        assert F.upsample_bilinear(x, scale_factor=2).shape == (1, 1, 4, 4)
    with pytest.warns(UserWarning, match="deprecated"):
        assert F.upsample_nearest(x, 3).shape == (1, 1, 3, 3)
    with pytest.warns(UserWarning, match="deprecated"):
        assert F.upsample(x, 3).shape == (1, 1, 3, 3)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [True, False])
def test_grid_sample_far_outside(mode, padding, align):
    grid = draw(2, 4, 5, 2) * 1.5
    options = {"mode": mode, "padding_mode": padding, "align_corners": align}
    agree(
        lambda x, g: F.grid_sample(x, g, **options), lambda x, g: TF.grid_sample(x, g, **options),
        draw(2, 3, 4, 6), grid,
    )  # fmt: skip
    if mode != "bicubic":
        agree(
            lambda x, g: F.grid_sample(x, g, **options),
            lambda x, g: TF.grid_sample(x, g, **options),
            draw(2, 2, 3, 4, 2), draw(2, 3, 2, 2, 3),
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Since version")
@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("size", [(2, 1, 3, 4), (2, 3, 1, 5), (2, 1, 3, 4, 2)])
def test_affine_grid(size, align):
    dims = len(size) - 2
    agree(
        lambda t: F.affine_grid(t, size, align), lambda t: TF.affine_grid(t, size, align),
        draw(2, dims, dims + 1),
    )  # fmt: skip


def test_unspecified_corners_warn():
    with pytest.warns(UserWarning, match="align_corners"):
        F.grid_sample(dg.ones(1, 1, 2, 2), dg.zeros(1, 1, 1, 2))


def test_windows_and_channels():
    agree(lambda x: F.unfold(x, 2), lambda x: TF.unfold(x, 2), draw(3, 4, 5))
    agree(
        lambda x: F.fold(x, (4, 5), 2, stride=(2, 1)),
        lambda x: TF.fold(x, (4, 5), 2, stride=(2, 1)), draw(12, 8),
    )  # fmt: skip
    agree(lambda x: dg.pixel_shuffle(x, 2), lambda x: torch.pixel_shuffle(x, 2), draw(2, 8, 3, 2))
    agree(lambda x: F.pixel_unshuffle(x, 3), lambda x: TF.pixel_unshuffle(x, 3), draw(2, 6, 3))
    x = draw(2, 6, 3)
    theirs = torch.channel_shuffle(torch.tensor(x), 3).numpy()
    np.testing.assert_array_equal(F.channel_shuffle(dg.tensor(x), 3).array, theirs)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda x: F.interpolate(x), ArgumentError),
        (lambda x: F.interpolate(x, 2, 2.0), ArgumentError),
        (lambda x: F.interpolate(x, (2, 2, 2)), ArgumentError),
        (lambda x: F.interpolate(x, 2, align_corners=True), ArgumentError),
        (lambda x: F.interpolate(x, 2, mode="linear"), NotImplementedError),
        (lambda x: F.interpolate(x, 2, mode="area", antialias=True), ArgumentError),
        (lambda x: F.interpolate(x, 0), ShapeError),
        (lambda x: F.grid_sample(x, dg.zeros(2, 1, 1, 2), align_corners=True), ShapeError),
        (lambda x: F.grid_sample(x, dg.zeros(1, 1, 1, 3), align_corners=True), ShapeError),
        (lambda x: F.grid_sample(x, dg.zeros(1, 1, 1, 2), "cubic"), ArgumentError),
        (lambda x: F.affine_grid(dg.zeros(1, 2, 2), (1, 1, 2, 2), True), ArgumentError),
        (lambda x: F.unfold(x, 9), ShapeError),
        (lambda x: F.fold(x[0], (4, 4), 2), ShapeError),
        (lambda x: dg.pixel_shuffle(x, 2), ShapeError),
        (lambda x: dg.pixel_unshuffle(x, 3), ShapeError),
        (lambda x: dg.channel_shuffle(x, 2), ShapeError),
    ],
)
def test_mistakes_are_refused(call, error):
    with pytest.raises(error):
        call(dg.ones(1, 3, 4, 4))


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("n", [7, 28, 32])
def test_points_on_the_elements_have_the_slopes_of_pytorch(n, align):
    """There the slope jumps: rounding decides which side a spatial transformer learns from."""
    image = np.random.default_rng(n).standard_normal((1, 2, n, n)).astype(np.float32)
    slopes = []
    for L, functional in ((torch, TF), (dg, F)):
        theta = L.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], requires_grad=True)
        grid = functional.affine_grid(theta, (1, 2, n, n), align_corners=align)
        seen = functional.grid_sample(L.tensor(image), grid, align_corners=align)
        slopes.append(L.autograd.grad((seen * seen).sum(), grid)[0].numpy())
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-3, atol=1e-3 * n)
