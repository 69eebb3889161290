"""Convolution and pooling: what samples cannot say."""

import numpy as np
import pytest

import distgrad.ops  # noqa: F401  (attaches the operators)
from distgrad.errors import ArgumentError, DtypeError, ShapeError
from distgrad.ops import adaptive, conv, pool, unpool
from distgrad.testing.torch_pairs import agree, draw, tensor

SPACE = {1: (9,), 2: (7, 8), 3: (5, 5, 6)}


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # by torch
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, "valid", "same"])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution_agrees_with_torch(dims, stride, padding, dilation, groups):
    torch = pytest.importorskip("torch")
    if padding == "same" and stride > 1:
        pytest.skip("refused")
    ours, theirs = getattr(conv, f"conv{dims}d"), getattr(torch.nn.functional, f"conv{dims}d")
    kernel = (2, 3, 2)[:dims]
    agree(
        lambda x, w, b: ours(x, w, b, stride, padding, dilation, groups),
        lambda x, w, b: theirs(x, w, b, stride, padding, dilation, groups),
        draw(2, 4, *SPACE[dims]), draw(8, 4 // groups, *kernel), draw(8),
    )  # fmt: skip


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("stride", "extra"), [(1, 0), (2, 0), (2, 1), (3, 2)])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_agrees_with_torch(dims, stride, extra, padding, groups):
    torch = pytest.importorskip("torch")
    ours = getattr(conv, f"conv_transpose{dims}d")
    theirs = getattr(torch.nn.functional, f"conv_transpose{dims}d")
    kernel = (3, 2, 4)[:dims]
    agree(
        lambda x, w, b: ours(x, w, b, stride, padding, extra, groups),
        lambda x, w, b: theirs(x, w, b, stride, padding, extra, groups),
        draw(2, 4, *SPACE[dims]), draw(4, 3, *kernel), draw(3 * groups),
    )  # fmt: skip


def test_one_image_without_a_batch_gives_one_image():
    torch = pytest.importorskip("torch")
    agree(conv.conv2d, torch.nn.functional.conv2d, draw(3, 5, 5), draw(4, 3, 3, 3))
    agree(conv.conv_transpose1d, torch.nn.functional.conv_transpose1d, draw(3, 5), draw(3, 4, 3))


def test_an_empty_batch_gives_an_empty_batch_and_a_gradient_of_zeros():
    torch = pytest.importorskip("torch")
    agree(conv.conv2d, torch.nn.functional.conv2d, draw(0, 3, 5, 5), draw(4, 3, 3, 3), draw(4))


def test_images_that_fill_several_chunks_agree_with_torch():
    torch = pytest.importorskip("torch")
    for stride in (1, 2):
        agree(
            lambda x, w, s=stride: conv.conv2d(x, w, None, s, 1),
            lambda x, w, s=stride: torch.nn.functional.conv2d(x, w, None, s, 1),
            draw(9, 8, 40, 40), draw(8, 8, 3, 3), atol=1e-6,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "options", "error", "text"),
    [
        (((2, 1, 5, 5), (8, 3, 3, 3)), {}, ShapeError,
         r"Given groups=1, weight of size \[8, 3, 3, 3\], expected input\[2, 1, 5, 5\] to have 3 "
         "channels, but got 1 channels instead"),
        (((2, 3, 5, 5), (8, 3, 3, 3), (7,)), {}, ShapeError, r"got bias of size \[7"),
        (((2, 3, 2, 2), (8, 3, 3, 3)), {}, ShapeError,
         r"Calculated padded input size per channel: \(2 x 2\). Kernel size: \(3 x 3\)"),
        (((2, 3), (8, 3, 3, 3)), {}, ShapeError, r"Expected 3D \(unbatched\) or 4D \(batched\)"),
        (((2, 6, 5, 5), (8, 2, 3, 3)), {"groups": 3}, ShapeError, "divisible by 3 at dimension 0"),
        (((2, 3, 5, 5), (8, 3, 3, 3)), {"stride": 0}, ShapeError, "non-positive stride"),
        (((2, 3, 5, 5), (8, 3, 3, 3)), {"padding": -1}, ShapeError, "negative padding"),
        (((2, 3, 5, 5), (8, 3, 3, 3)), {"dilation": 0}, ShapeError, "greater than zero"),
        (((2, 3, 5, 5), (8, 3, 3, 3)), {"stride": (1, 2, 3)}, ShapeError, "a list of 2 values"),
        (((2, 3, 5, 5), (8, 3, 3, 3)), {"stride": 2, "padding": "same"}, ShapeError, "strided"),
        (((2, 3, 5, 5), (8, 3, 3, 3)), {"padding": "sane"}, ShapeError, "Invalid padding string"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_convolution_is_named(shapes, options, error, text):
    with pytest.raises(error, match=text):
        conv.conv2d(*[tensor(draw(*s)) for s in shapes], **options)


def test_a_mistake_in_a_transposed_convolution_is_named():
    with pytest.raises(ShapeError, match="to have 3 channels, but got 4 channels"):
        conv.conv_transpose2d(tensor(draw(1, 4, 5, 5)), tensor(draw(3, 8, 3, 3)))
    with pytest.raises(ShapeError, match="smaller than either stride or dilation"):
        conv.conv_transpose1d(tensor(draw(1, 3, 5)), tensor(draw(3, 8, 3)), output_padding=1)
    with pytest.raises(DtypeError, match="should be the same"):
        conv.conv1d(tensor(draw(1, 3, 5)), tensor(draw(8, 3, 3).astype(np.float32)))


# ---------------------------------------------------------------------- pooling
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "stride"), [(2, None), (3, 1), (3, 2), (2, 3)])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("ceil", [False, True])
def test_max_pooling_agrees_with_torch_in_values_places_and_gradients(
    dims, kernel, stride, padding, dilation, ceil
):
    torch = pytest.importorskip("torch")
    ours = getattr(pool, f"max_pool{dims}d")
    theirs = getattr(torch.nn.functional, f"max_pool{dims}d")
    x = draw(2, 3, *SPACE[dims])
    options = (kernel, stride, padding, dilation, ceil)
    agree(lambda t: ours(t, *options), lambda t: theirs(t, *options), x)
    places = ours(tensor(x), *options, return_indices=True)[1]
    want = theirs(torch.tensor(x), *options, return_indices=True)[1]
    np.testing.assert_array_equal(places.array, want.numpy())


@pytest.mark.parametrize("fill", [np.nan, -np.inf, 0.0])
def test_the_maximum_of_odd_values_is_placed_where_torch_places_it(fill):
    torch = pytest.importorskip("torch")
    x = draw(1, 2, 6, 6)
    x[0, 0] = fill
    x[0, 1, 3] = fill
    ours = pool.max_pool2d(tensor(x), 3, 2, 1, return_indices=True)
    theirs = torch.nn.functional.max_pool2d(torch.tensor(x), 3, 2, 1, return_indices=True)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.array, b.numpy())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "stride"), [(2, None), (3, 1), (3, 2), (2, 3)])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_average_pooling_agrees_with_torch(dims, kernel, stride, padding, ceil, include):
    torch = pytest.importorskip("torch")
    ours = getattr(pool, f"avg_pool{dims}d")
    theirs = getattr(torch.nn.functional, f"avg_pool{dims}d")
    options = (kernel, stride, padding, ceil, include)
    agree(lambda t: ours(t, *options), lambda t: theirs(t, *options), draw(2, 3, *SPACE[dims]))


def test_the_divisor_may_be_given():
    torch = pytest.importorskip("torch")
    agree(
        lambda t: pool.avg_pool2d(t, 3, 2, 1, divisor_override=7),
        lambda t: torch.nn.functional.avg_pool2d(t, 3, 2, 1, divisor_override=7),
        draw(2, 5, 6),
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 10])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_adaptive_pooling_agrees_with_torch(dims, size, kind):
    torch = pytest.importorskip("torch")
    ours = getattr(adaptive, f"adaptive_{kind}_pool{dims}d")
    theirs = getattr(torch.nn.functional, f"adaptive_{kind}_pool{dims}d")
    agree(lambda t: ours(t, size), lambda t: theirs(t, size), draw(2, 3, *SPACE[dims]))


def test_adaptive_pooling_keeps_a_dimension_that_is_none():
    torch = pytest.importorskip("torch")
    agree(
        lambda t: adaptive.adaptive_avg_pool2d(t, (None, 3)),
        lambda t: torch.nn.functional.adaptive_avg_pool2d(t, (None, 3)),
        draw(3, 5, 7),
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_unpooling_agrees_with_torch(dims):
    torch = pytest.importorskip("torch")
    space = (4, 6, 6)[:dims]
    x = draw(2, 3, *space)
    pooled = getattr(torch.nn.functional, f"max_pool{dims}d")(
        torch.tensor(x), 2, return_indices=True
    )
    ours = getattr(unpool, f"max_unpool{dims}d")
    theirs = getattr(torch.nn.functional, f"max_unpool{dims}d")
    for size in (None, tuple(n + 1 for n in space)):
        agree(
            lambda t, i, size=size: ours(t, i, 2, output_size=size),
            lambda t, i, size=size: theirs(t, i, 2, output_size=size),
            pooled[0].numpy(), pooled[1].numpy(),
        )  # fmt: skip


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_power_pooling_agrees_with_torch(dims, power):
    torch = pytest.importorskip("torch")
    ours = getattr(pool, f"lp_pool{dims}d")
    theirs = getattr(torch.nn.functional, f"lp_pool{dims}d")
    agree(
        lambda t: ours(t, power, 2, None, True), lambda t: theirs(t, power, 2, None, True),
        np.abs(draw(2, 3, *SPACE[dims])),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: pool.max_pool2d(x, 3, padding=2), ShapeError, "at most half of effective"),
        (lambda x: pool.max_pool2d(x, 9), ShapeError, "Output size is too small"),
        (lambda x: pool.max_pool2d(x, 0), ShapeError, "greater than zero"),
        (lambda x: pool.max_pool3d(x[0], 2), ShapeError, "Expected 4D or 5D"),
        (lambda x: pool.avg_pool2d(x, (1, 2, 3)), ShapeError, "a tuple of 2 ints"),
        (lambda x: pool.avg_pool2d(x, 2, divisor_override=0), ShapeError, "not zero"),
        (lambda x: adaptive.adaptive_avg_pool2d(x, (1, 2, 3)), ShapeError, "must have 2 entries"),
        (lambda x: unpool.max_unpool2d(x, tensor(np.full(x.shape, 999)), 2), ShapeError,
         "Found an invalid max index: 999"),
        (lambda x: unpool.max_unpool2d(x, tensor(np.zeros(x.shape, int)), 2, output_size=(3, 3)),
         ArgumentError, "invalid output_size"),
    ],
)  # fmt: skip
def test_a_mistake_in_pooling_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call(tensor(draw(2, 3, 5, 5)))
