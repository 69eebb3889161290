"""Every layer against PyTorch: printed form, state, first values, forward and gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

import distgrad as dg
from distgrad import nn

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


class Case(NamedTuple):
    """A layer and the inputs it is tried with: shapes of normals, or arrays."""

    name: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    inputs: tuple[Any, ...]

    def __str__(self) -> str:
        options = [f"{k}={v}" for k, v in self.options.items()]
        return f"{self.name}({', '.join([*map(str, self.args), *options])})"


def case(name: str, *args: Any, inputs: tuple[Any, ...] = ((2, 3),), **options: Any) -> Case:
    return Case(name, args, options, inputs)


_IMAGE = ((2, 4, 6, 7),)
_LINE = ((2, 4, 9),)
_SPACE = ((2, 4, 5, 6, 4),)
_INDEX = np.array([[1, 2, 0], [4, 1, 1]])

ACTIVATIONS = [
    case(name)
    for name in (
        "ReLU", "ReLU6", "Sigmoid", "Tanh", "SiLU", "Mish", "Hardswish", "Hardsigmoid", "ELU",
        "CELU", "SELU", "GELU", "Hardshrink", "LeakyReLU", "LogSigmoid", "Softplus",
        "Softshrink", "Softsign", "Tanhshrink", "Hardtanh", "PReLU", "Identity",
    )
]  # fmt: skip
CASES = [
    *ACTIVATIONS,
    case("ReLU", inplace=True, inputs=((2, 3),)),
    case("Threshold", 0.1, 20.0),
    case("Hardtanh", -0.5, 0.7),
    case("ELU", alpha=0.5),
    case("LeakyReLU", 0.2),
    case("GELU", approximate="tanh"),
    case("GLU", dim=-1, inputs=((2, 4),)),
    case("PReLU", 4, init=0.1, inputs=_IMAGE),
    case("Softplus", beta=2.0, threshold=1.0),
    case("Softmax", dim=1),
    case("Softmin", dim=0),
    case("LogSoftmax", dim=-1),
    case("Softmax2d", inputs=_IMAGE),
    case("Linear", 3, 5),
    case("Linear", 3, 5, bias=False, inputs=((3,),)),
    case("Bilinear", 3, 4, 5, inputs=((2, 3), (2, 4))),
    case("Embedding", 5, 3, inputs=(_INDEX,)),
    case("Embedding", 5, 3, padding_idx=-1, scale_grad_by_freq=True, inputs=(_INDEX,)),
    case("EmbeddingBag", 5, 3, inputs=(_INDEX,)),
    case("EmbeddingBag", 5, 3, mode="sum", padding_idx=1, inputs=(_INDEX,)),
    case("LayerNorm", 3),
    case("LayerNorm", (4, 9), bias=False, inputs=_LINE),
    case("LayerNorm", 3, elementwise_affine=False, eps=1e-3),
    case("GroupNorm", 2, 4, inputs=_IMAGE),
    case("GroupNorm", 2, 4, affine=False, inputs=_IMAGE),
    case("RMSNorm", 3),
    case("RMSNorm", (4, 9), eps=1e-3, elementwise_affine=False, inputs=_LINE),
    case("LocalResponseNorm", 2, inputs=_IMAGE),
    case("BatchNorm1d", 4, inputs=_LINE),
    case("BatchNorm1d", 3, momentum=None, inputs=((5, 3),)),
    case("BatchNorm2d", 4, inputs=_IMAGE),
    case("BatchNorm2d", 4, affine=False, track_running_stats=False, inputs=_IMAGE),
    case("BatchNorm2d", 4, bias=False, inputs=_IMAGE),
    case("BatchNorm3d", 4, eps=1e-3, inputs=_SPACE),
    case("InstanceNorm1d", 4, inputs=_LINE),
    case("InstanceNorm2d", 4, affine=True, track_running_stats=True, inputs=_IMAGE),
    case("InstanceNorm2d", 4, inputs=((4, 5, 6),)),
    case("InstanceNorm3d", 4, inputs=_SPACE),
    case("Conv1d", 4, 6, 3, inputs=_LINE),
    case("Conv1d", 4, 6, 3, padding="same", dilation=2, padding_mode="circular", inputs=_LINE),
    case("Conv2d", 4, 6, 3, inputs=_IMAGE),
    case("Conv2d", 4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2, inputs=_IMAGE),
    case("Conv2d", 4, 6, 3, padding=1, padding_mode="reflect", bias=False, inputs=_IMAGE),
    case("Conv2d", 4, 6, 3, padding="same", inputs=_IMAGE),
    case("Conv2d", 4, 6, 3, padding="valid", inputs=_IMAGE),
    case("Conv2d", 4, 6, 3, padding=(1, 2), padding_mode="replicate", inputs=_IMAGE),
    case("Conv3d", 4, 2, (2, 3, 2), inputs=_SPACE),
    case("ConvTranspose1d", 4, 3, 3, stride=2, inputs=_LINE),
    case("ConvTranspose2d", 4, 6, 3, stride=2, padding=1, output_padding=1, groups=2,
         inputs=_IMAGE),
    case("ConvTranspose3d", 4, 2, 2, dilation=2, bias=False, inputs=_SPACE),
    case("MaxPool1d", 3, inputs=_LINE),
    case("MaxPool2d", 2, stride=1, padding=1, ceil_mode=True, inputs=_IMAGE),
    case("MaxPool2d", (2, 3), dilation=(1, 2), inputs=_IMAGE),
    case("MaxPool3d", 2, inputs=_SPACE),
    case("AvgPool1d", 3, inputs=_LINE),
    case("AvgPool2d", (2, 3), stride=2, padding=1, count_include_pad=False, inputs=_IMAGE),
    case("AvgPool2d", 2, divisor_override=3, inputs=_IMAGE),
    case("AvgPool3d", 2, inputs=_SPACE),
    case("LPPool1d", 2, 3, inputs=_LINE),
    case("LPPool2d", 2, 3, stride=2, inputs=_IMAGE),
    case("LPPool3d", 2, 2, inputs=_SPACE),
    case("AdaptiveAvgPool1d", 4, inputs=_LINE),
    case("AdaptiveAvgPool2d", (3, None), inputs=_IMAGE),
    case("AdaptiveAvgPool3d", 2, inputs=_SPACE),
    case("AdaptiveMaxPool1d", 4, inputs=_LINE),
    case("AdaptiveMaxPool2d", (3, 2), inputs=_IMAGE),
    case("AdaptiveMaxPool3d", 2, inputs=_SPACE),
    case("ReflectionPad1d", 2, inputs=_LINE),
    case("ReflectionPad2d", (1, 2, 0, 1), inputs=_IMAGE),
    case("ReflectionPad3d", 1, inputs=_SPACE),
    case("ReplicationPad1d", (2, 1), inputs=_LINE),
    case("ReplicationPad2d", 2, inputs=_IMAGE),
    case("ReplicationPad3d", 1, inputs=_SPACE),
    case("CircularPad1d", (2, 1), inputs=_LINE),
    case("CircularPad2d", 2, inputs=_IMAGE),
    case("CircularPad3d", 1, inputs=_SPACE),
    case("ZeroPad1d", 1, inputs=_LINE),
    case("ZeroPad2d", (1, 2, 0, 1), inputs=_IMAGE),
    case("ZeroPad3d", 1, inputs=_SPACE),
    case("ConstantPad1d", 1, 0.5, inputs=_LINE),
    case("ConstantPad2d", (1, 2, 0, 1), 3, inputs=_IMAGE),
    case("ConstantPad3d", 1, 1.5, inputs=_SPACE),
    case("Flatten", inputs=_IMAGE),
    case("Flatten", 0, 1, inputs=_IMAGE),
    case("Unflatten", 1, (2, 2), inputs=_LINE),
    case("Unfold", (2, 3), padding=1, inputs=_IMAGE),
    case("Fold", (4, 5), 2, stride=(2, 1), inputs=((2, 12, 8),)),
    case("PixelShuffle", 2, inputs=_IMAGE),
    case("PixelUnshuffle", 2, inputs=((2, 1, 4, 6),)),
    case("ChannelShuffle", 2, inputs=_IMAGE),
    case("Upsample", scale_factor=2, inputs=_LINE),
    case("Upsample", (4, 9), mode="bicubic", align_corners=True, inputs=_IMAGE),
    case("Upsample", scale_factor=(1.5, 2.0), mode="bilinear", inputs=_IMAGE),
    case("UpsamplingNearest2d", 5, inputs=_IMAGE),
    case("UpsamplingBilinear2d", scale_factor=2, inputs=_IMAGE),
    case("PairwiseDistance", inputs=((2, 3), (2, 3))),
    case("PairwiseDistance", p=1.0, keepdim=True, inputs=((2, 3), (2, 3))),
    case("CosineSimilarity", inputs=((2, 3), (2, 3))),
    case("Dropout", 0.0),
    case("Dropout2d", 0.0, inputs=_IMAGE),
    case("AlphaDropout", 0.0),
]  # fmt: skip


def _pair(case: Case, wide: bool) -> tuple[Any, Any]:
    dg.manual_seed(0)
    torch.manual_seed(0)
    ours = getattr(nn, case.name)(*case.args, **case.options)
    theirs = getattr(torch.nn, case.name)(*case.args, **case.options)
    return (ours.double(), theirs.double()) if wide else (ours, theirs)


def _inputs(case: Case) -> tuple[list[Any], list[Any]]:
    numbers = np.random.default_rng(0)
    arrays = [x if isinstance(x, np.ndarray) else numbers.standard_normal(x) for x in case.inputs]
    ours = [dg.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    return ours, [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]


def _assert_same_state(ours: Any, theirs: Any, tolerance: float) -> None:
    a, b = ours.state_dict(), theirs.state_dict()
    assert list(a) == list(b)
    for name, value in b.items():
        assert a[name].array.dtype == value.numpy().dtype
        np.testing.assert_allclose(
            a[name].array, value.numpy(), rtol=tolerance, atol=tolerance, err_msg=name, strict=True
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_printed_form_and_first_values_are_those_of_torch(case: Case) -> None:
    ours, theirs = _pair(case, wide=False)
    assert repr(ours) == repr(theirs)
    # Normals differ in the last bit of float32, everything else not at all.
    _assert_same_state(ours, theirs, 1e-6 if case.name.startswith("Embedding") else 0.0)
    assert [p.requires_grad for p in ours.parameters()] == [
        p.requires_grad for p in theirs.parameters()
    ]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_gradients_are_those_of_torch(case: Case, training: bool) -> None:
    ours, theirs = _pair(case, wide=True)
    _assert_same_state(ours, theirs, 1e-6)
    ours.load_state_dict({k: dg.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    ours.train(training)
    theirs.train(training)
    x, y = _inputs(case)
    if case.options.get("inplace"):
        out, expected = ours(x[0] * 1), theirs(y[0] * 1)
    else:
        out, expected = ours(*x), theirs(*y)
    assert type(out) is dg.Tensor
    np.testing.assert_allclose(
        out.detach().numpy(), expected.detach().numpy(), rtol=1e-10, atol=1e-10, strict=True
    )
    if expected.requires_grad:
        weights = np.random.default_rng(1).standard_normal(tuple(expected.shape))
        out.backward(dg.tensor(weights))
        expected.backward(torch.tensor(weights))
    _assert_same_state(ours, theirs, 1e-10)
    rtol = 1e-7 if case.name == "Hardsigmoid" else 1e-9  # torch's 1/6 is a float32
    pairs = [*zip(x, y, strict=True), *zip(ours.parameters(), theirs.parameters(), strict=True)]
    for a, b in pairs:
        assert (a.grad is None) == (b.grad is None)
        if b.grad is not None:
            np.testing.assert_allclose(
                a.grad.array, b.grad.numpy(), rtol=rtol, atol=1e-10, strict=True
            )


@pytest.mark.parametrize("name", ["MaxPool1d", "MaxPool2d", "MaxPool3d"])
def test_unpooling_puts_maxima_back(name: str) -> None:
    shape = {"1": (2, 3, 8), "2": (2, 3, 6, 8), "3": (2, 3, 4, 6, 4)}[name[7]]
    array = np.random.default_rng(0).standard_normal(shape)
    back = name.replace("Max", "MaxUn").replace("UnPool", "Unpool")
    ours = getattr(nn, back)(2)(*getattr(nn, name)(2, return_indices=True)(dg.tensor(array)))
    pooled = getattr(torch.nn, name)(2, return_indices=True)(torch.tensor(array))
    assert repr(getattr(nn, back)(2)) == repr(getattr(torch.nn, back)(2))
    np.testing.assert_array_equal(ours.numpy(), getattr(torch.nn, back)(2)(*pooled).numpy())


def test_a_transposed_convolution_gives_the_size_that_is_asked_for() -> None:
    down, up = nn.Conv2d(2, 2, 3, stride=2, padding=1), nn.ConvTranspose2d(2, 2, 3, 2, 1)
    x = dg.ones(1, 2, 12, 11)
    assert up(down(x), output_size=x.shape).shape == (1, 2, 12, 11)
    with pytest.raises(ValueError, match="valid sizes range from"):
        up(down(x), output_size=[14, 11])


ATTENTION: list[dict[str, Any]] = [
    {},
    {"bias": False, "batch_first": True},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"kdim": 6, "vdim": 10},
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", ATTENTION, ids=str)
def test_attention_is_that_of_torch(
    options: dict[str, Any], need_weights: bool, masked: bool
) -> None:
    args = case("MultiheadAttention", 8, 2, **options)
    ours, theirs = _pair(args, wide=False)
    assert repr(ours) == repr(theirs)
    _assert_same_state(ours, theirs, 1e-6)
    ours, theirs = ours.double(), theirs.double()
    ours.load_state_dict({k: dg.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    numbers = np.random.default_rng(0)
    lead = (3, 5) if options.get("batch_first") else (5, 3)
    sizes = (8, options.get("kdim", 8), options.get("vdim", 8))
    arrays = [numbers.standard_normal((*lead, n)) for n in sizes]
    masks: dict[str, Any] = {}
    if masked:
        padding = np.zeros((3, 5), bool)
        padding[1, 3:] = True
        masks = {"attn_mask": np.triu(np.ones((5, 5), bool), 1), "key_padding_mask": padding}
    x = [dg.tensor(a, requires_grad=True) for a in arrays]
    y = [torch.tensor(a, requires_grad=True) for a in arrays]
    own = {k: dg.tensor(v) for k, v in masks.items()}
    out, weights = ours(*x, need_weights=need_weights, **own)
    their = {k: torch.tensor(v) for k, v in masks.items()}
    expected, their_weights = theirs(*y, need_weights=need_weights, **their)
    np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), rtol=1e-9)
    assert (weights is None) == (their_weights is None)
    if weights is not None:
        np.testing.assert_allclose(
            weights.detach().numpy(), their_weights.detach().numpy(), atol=1e-12
        )
    out.sum().backward()
    expected.sum().backward()
    for a, b in [
        *zip(x, y, strict=True),
        *zip(ours.parameters(), theirs.parameters(), strict=True),
    ]:
        np.testing.assert_allclose(a.grad.array, b.grad.numpy(), rtol=1e-7, atol=1e-9)


def test_attention_of_one_sample_and_of_every_head() -> None:
    ours, theirs = _pair(case("MultiheadAttention", 8, 2), wide=False)
    array = np.random.default_rng(0).standard_normal((4, 8)).astype("float32")
    x, y = dg.tensor(array), torch.tensor(array)
    out, weights = ours(x, x, x, average_attn_weights=False)
    expected, their_weights = theirs(y, y, y, average_attn_weights=False)
    np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(weights.detach().numpy(), their_weights.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["Dropout", "Dropout2d", "AlphaDropout"])
def test_dropout_keeps_the_mean_and_does_nothing_in_evaluation(name: str) -> None:
    dg.manual_seed(0)
    layer = getattr(nn, name)(0.25)
    x = dg.ones(40, 50, 4, 4)
    assert abs(layer(x).mean().item() - 1) < 0.05 or name == "AlphaDropout"
    assert not dg.equal(layer(x), x)
    assert dg.equal(layer.eval()(x), x)
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        getattr(nn, name)(1.5)


REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("Conv2d", (3, 4, 3), {"groups": 2}, "in_channels must be divisible by groups"),
    ("Conv2d", (4, 3, 3), {"groups": 2}, "out_channels must be divisible by groups"),
    ("Conv2d", (4, 4, 3), {"groups": 0}, "groups must be a positive integer"),
    ("Conv2d", (4, 4, 3), {"padding": "full"}, "Invalid padding string"),
    ("Conv2d", (4, 4, 3), {"padding": "same", "stride": 2}, "not supported for strided"),
    ("Conv2d", (4, 4, 3), {"padding_mode": "mirror"}, "padding_mode must be one of"),
    ("ConvTranspose2d", (4, 4, 3), {"padding_mode": "reflect"}, 'Only "zeros" padding mode'),
    ("GroupNorm", (3, 4), {}, "must be divisible by num_groups"),
    ("Embedding", (3, 4), {"padding_idx": 3}, "Padding_idx must be within num_embeddings"),
    ("Hardtanh", (1.0, 0.0), {}, "max_val must be greater than min_val"),
    ("MultiheadAttention", (8, 3), {}, "embed_dim must be divisible by num_heads"),
]


@pytest.mark.parametrize(("name", "args", "options", "message"), REFUSED)
def test_bad_sizes_are_refused(
    name: str, args: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(nn, name)(*args, **options)


def test_a_batch_norm_refuses_inputs_of_other_dimensions() -> None:
    with pytest.raises(ValueError, match=r"expected 4D input \(got 3D input\)"):
        nn.BatchNorm2d(3)(dg.ones(2, 3, 4))
    with pytest.raises(ValueError, match="to match num_features"):
        nn.InstanceNorm2d(3, affine=True)(dg.ones(2, 4, 5, 5))
