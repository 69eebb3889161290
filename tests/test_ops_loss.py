"""Losses, distances and embeddings: what samples cannot say."""

import warnings

import numpy as np
import pytest

import distgrad.ops  # noqa: F401  (attaches the operators)
from distgrad.errors import ArgumentError, DtypeError, IndexOutOfRange, ShapeError
from distgrad.ops import embed, loss, margin
from distgrad.testing.torch_pairs import agree, draw, tensor

REDUCTIONS = ["none", "mean", "sum"]
rng = np.random.default_rng(5)


def ours_of(name):
    return getattr(loss, name, None) or getattr(margin, name)


# ---------------------------------------------------------------------- cross entropy
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("ignore", "smoothing"), [(-100, 0.0), (2, 0.0), (-1, 0.2), (1, 0.2)])
@pytest.mark.parametrize("shape", [(7, 5), (5,), (2, 5, 3), (0, 5), (500, 90)])
@pytest.mark.parametrize("size", [1, 100])
def test_cross_entropy_agrees_with_torch(shape, ignore, smoothing, weighted, reduction, size):
    torch = pytest.importorskip("torch")
    classes = shape[len(shape) > 1]
    target = np.asarray(3)
    if len(shape) > 1:
        target = rng.integers(0, classes, shape[:1] + shape[2:])
    if ignore < 0 and target.size > 2:
        target.reshape(-1)[1] = ignore
    options = {"ignore_index": ignore, "reduction": reduction, "label_smoothing": smoothing}
    weight = abs(draw(classes)) if weighted else None
    agree(
        lambda x, y: loss.cross_entropy(
            x, y, None if weight is None else tensor(weight), **options
        ),
        lambda x, y: torch.nn.functional.cross_entropy(
            x, y, None if weight is None else torch.tensor(weight), **options
        ),
        draw(*shape) * size, np.asarray(target),
    )  # fmt: skip


def test_the_mean_over_ignored_rows_alone_is_not_a_number():
    out = loss.cross_entropy(tensor(draw(2, 3)), tensor([1, 1]), ignore_index=1)
    assert np.isnan(out.item())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(4, 5), (5,), (2, 5, 3)])
def test_cross_entropy_takes_probabilities(shape, smoothing, reduction):
    torch = pytest.importorskip("torch")
    target = np.abs(draw(*shape))
    weight = abs(draw(5))
    options = {"reduction": reduction, "label_smoothing": smoothing}
    agree(
        lambda x, y: loss.cross_entropy(x, y, tensor(weight), **options),
        lambda x, y: torch.nn.functional.cross_entropy(x, y, torch.tensor(weight), **options),
        draw(*shape), target,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (5,), (2, 5, 3)])
def test_nll_loss_agrees_with_torch(shape, weighted, reduction):
    torch = pytest.importorskip("torch")
    target = np.asarray(rng.integers(0, 5, shape[:1] + shape[2:] if len(shape) > 1 else ()))
    weight = abs(draw(5)) if weighted else None
    agree(
        lambda x, y: loss.nll_loss(
            x, y, None if weight is None else tensor(weight), ignore_index=2, reduction=reduction
        ),
        lambda x, y: torch.nn.functional.nll_loss(
            x, y, None if weight is None else torch.tensor(weight), ignore_index=2,
            reduction=reduction,
        ),
        draw(*shape), target,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize(
    ("shape", "target", "error", "text"),
    [
        ((3, 5), [1, 7, 0], IndexOutOfRange, "Target 7 is out of bounds: classes are 0 … 4"),
        ((3, 5), [1, -1, 0], IndexOutOfRange, "Target -1 is out of bounds"),
        ((3, 5), [1.0, 2.0, 0.0], DtypeError, "to be Long or Byte, but got float64"),
        ((3, 5), [1, 2, 0, 1], ArgumentError, r"batch_size \(3\) to match target batch_size \(4\)"),
        ((3, 5), [[1], [2], [0]], ShapeError, "multi-target not supported"),
        ((2, 5, 2), [[1, 2, 3]] * 2, ShapeError, r"Expected target size \[2, 2\], got \[2, 3\]"),
        ((5,), 7, IndexOutOfRange, "Target 7"),
    ],
)
def test_a_wrong_target_is_named(name, shape, target, error, text):
    with pytest.raises(error, match=text):
        ours_of(name)(tensor(draw(*shape)), tensor(target))


def test_wrong_options_are_named():
    x, y = tensor(draw(3, 5)), tensor([1, 2, 0])
    with pytest.raises(ShapeError, match=r"all 5 classes .* shape: \[4\]"):
        loss.cross_entropy(x, y, tensor(draw(4)))
    with pytest.raises(ArgumentError, match="foo is not a valid value for reduction"):
        loss.cross_entropy(x, y, reduction="foo")
    with pytest.raises(RuntimeError, match="label_smoothing must be between"):
        loss.cross_entropy(x, y, label_smoothing=2)
    with pytest.raises(ArgumentError, match="must be the same as input size"):
        loss.binary_cross_entropy_with_logits(x, tensor(draw(3, 4)))
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        loss.binary_cross_entropy(x + 3, x)


def test_the_deprecated_arguments_work_with_a_warning():
    x, y = tensor(draw(3, 5)), tensor([1, 2, 0])
    with pytest.warns(UserWarning, match="reduction='sum'"):
        old = loss.cross_entropy(x, y, size_average=False)
    assert old.item() == loss.cross_entropy(x, y, reduction="sum").item()


def test_a_target_of_another_size_is_broadcast_with_a_warning():
    with pytest.warns(UserWarning, match="target size"):
        out = loss.mse_loss(tensor(np.ones((3, 1))), tensor(np.zeros((1, 4))), reduction="none")
    assert out.shape == (3, 4)


# ---------------------------------------------------------------------- the rest of the losses
SIGNS = np.sign(draw(4, 3))
UNIT = 0.1 + 0.8 * rng.random((4, 3))
CASES = [
    ("mse_loss", [draw(4, 3), draw(4, 3)], {}),
    ("l1_loss", [draw(4, 3), draw(4, 3)], {}),
    ("smooth_l1_loss", [draw(4, 3), draw(4, 3)], {"beta": 0.7}),
    ("smooth_l1_loss", [draw(4, 3), draw(4, 3)], {"beta": 0.0}),
    ("huber_loss", [draw(4, 3), draw(4, 3)], {"delta": 0.6}),
    ("binary_cross_entropy", [UNIT, rng.random((4, 3))], {}),
    ("binary_cross_entropy", [np.array([0.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0])], {}),
    ("binary_cross_entropy_with_logits", [draw(4, 3) * 50, rng.random((4, 3))], {}),
    ("kl_div", [draw(4, 3), rng.random((4, 3))], {}),
    ("kl_div", [draw(4, 3), draw(4, 3)], {"log_target": True}),
    ("gaussian_nll_loss", [draw(4, 3), draw(4, 3), UNIT], {"full": True}),
    ("gaussian_nll_loss", [draw(4, 3), draw(4, 3), UNIT[:, 0]], {"eps": 0.5}),
    ("poisson_nll_loss", [draw(4, 3), 5 * UNIT], {"full": True}),
    ("poisson_nll_loss", [UNIT, 5 * UNIT], {"log_input": False}),
    ("hinge_embedding_loss", [draw(4, 3), SIGNS.astype(int)], {"margin": 0.8}),
    ("soft_margin_loss", [draw(4, 3), SIGNS.astype(int)], {}),
    ("margin_ranking_loss", [draw(4), draw(4), SIGNS[:, 0].astype(int)], {"margin": 0.3}),
    ("cosine_embedding_loss", [draw(4, 3), draw(4, 3), SIGNS[:, 0].astype(int)], {"margin": 0.1}),
    ("triplet_margin_loss", [draw(4, 3), draw(4, 3), draw(4, 3)], {"swap": True, "p": 1.5}),
    ("triplet_margin_with_distance_loss", [draw(4, 3), draw(4, 3), draw(4, 3)], {}),
    ("multi_margin_loss", [draw(4, 3), np.array([0, 2, 1, 1])], {"p": 2, "margin": 0.5}),
    ("multi_margin_loss", [draw(3), np.array(1)], {}),
    ("multilabel_margin_loss", [draw(2, 3), np.array([[2, -1, 0], [0, 1, -1]])], {}),
    ("multilabel_margin_loss", [draw(3), np.array([1, 2, -1])], {}),
    ("multilabel_soft_margin_loss", [draw(4, 3), rng.random((4, 3))], {}),
]  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("name", "arrays", "options"), CASES)
def test_a_loss_agrees_with_torch(name, arrays, options, reduction):
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn.functional, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch on kl_div's mean
        agree(
            lambda *ts: ours_of(name)(*ts, reduction=reduction, **options),
            lambda *ts: theirs(*ts, reduction=reduction, **options),
            *arrays,
        )


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "huber_loss", "binary_cross_entropy"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_of_elements_agree_with_torch(name, reduction):
    torch = pytest.importorskip("torch")
    weight = rng.random((4, 3))
    agree(
        lambda a, b: ours_of(name)(a, b, weight=tensor(weight), reduction=reduction),
        lambda a, b: getattr(torch.nn.functional, name)(
            a, b, weight=torch.tensor(weight), reduction=reduction
        ),
        UNIT, rng.random((4, 3)),
    )  # fmt: skip


def test_pos_weight_agrees_with_torch():
    torch = pytest.importorskip("torch")
    weight = rng.random(3)
    agree(
        lambda a, b: loss.binary_cross_entropy_with_logits(a, b, pos_weight=tensor(weight)),
        lambda a, b: torch.nn.functional.binary_cross_entropy_with_logits(
            a, b, pos_weight=torch.tensor(weight)
        ),
        draw(4, 3), rng.random((4, 3)),
    )  # fmt: skip


def test_the_batch_mean_of_the_divergence_agrees_with_torch():
    torch = pytest.importorskip("torch")
    agree(
        lambda a, b: loss.kl_div(a, b, reduction="batchmean"),
        lambda a, b: torch.nn.functional.kl_div(a, b, reduction="batchmean"),
        draw(4, 3), rng.random((4, 3)),
    )  # fmt: skip


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_cosine_similarity_agrees_with_torch(dim):
    torch = pytest.importorskip("torch")
    agree(
        lambda a, b: margin.cosine_similarity(a, b, dim),
        lambda a, b: torch.nn.functional.cosine_similarity(a, b, dim),
        draw(4, 3), draw(4, 3),
    )  # fmt: skip


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("keepdim", [False, True])
def test_pairwise_distance_agrees_with_torch(p, keepdim):
    torch = pytest.importorskip("torch")
    agree(
        lambda a, b: margin.pairwise_distance(a, b, p, keepdim=keepdim),
        lambda a, b: torch.nn.functional.pairwise_distance(a, b, p, keepdim=keepdim),
        draw(4, 3), draw(4, 3),
    )  # fmt: skip


# ---------------------------------------------------------------------- embeddings
@pytest.mark.parametrize("padding_idx", [None, 1, -3])
@pytest.mark.parametrize("by_freq", [False, True])
@pytest.mark.parametrize("shape", [(6, 3), (300, 40)])
def test_embedding_agrees_with_torch(padding_idx, by_freq, shape):
    torch = pytest.importorskip("torch")
    options = {"padding_idx": padding_idx, "scale_grad_by_freq": by_freq}
    agree(
        lambda i, w: embed.embedding(i, w, **options),
        lambda i, w: torch.nn.functional.embedding(i, w, **options),
        rng.integers(0, 6, (4, 5)), draw(*shape),
    )  # fmt: skip


def test_max_norm_scales_the_rows_in_use_in_place_as_torch_does():
    torch = pytest.importorskip("torch")
    weight = draw(5, 3) * 3
    ours, theirs = tensor(weight.copy()), torch.tensor(weight)
    index = np.array([0, 3, 3])
    out = embed.embedding(tensor(index), ours, max_norm=1.5)
    want = torch.nn.functional.embedding(torch.tensor(index), theirs, max_norm=1.5)
    np.testing.assert_allclose(out.array, want.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.array, theirs.numpy(), rtol=1e-6)


def test_wrong_indices_are_named():
    weight = tensor(draw(5, 3))
    with pytest.raises(IndexOutOfRange, match=r"index out of range in self: 7 is not in \[0, 5\)"):
        embed.embedding(tensor([1, 7]), weight)
    with pytest.raises(IndexOutOfRange, match="-1 is not in"):
        embed.embedding(tensor([1, -1]), weight)
    with pytest.raises(DtypeError, match="int32 or int64"):
        embed.embedding(tensor([1.0]), weight)
    with pytest.raises(RuntimeError, match="non-negative, but one is -1"):
        embed.one_hot(tensor([0, -1]))
    with pytest.raises(RuntimeError, match="smaller than num_classes"):
        embed.one_hot(tensor([0, 4]), 3)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_embedding_bag_agrees_with_torch(mode, padding_idx, last, flat):
    torch = pytest.importorskip("torch")
    if flat:
        index, offsets = rng.integers(0, 6, 7), np.array([0, 3, 3, 5] + [7] * last)
    else:
        index, offsets = rng.integers(0, 6, (3, 4)), None
    options = {"mode": mode, "padding_idx": padding_idx}
    options["include_last_offset"] = last and flat
    agree(
        lambda i, w: embed.embedding_bag(
            i, w, None if offsets is None else tensor(offsets), **options
        ),
        lambda i, w: torch.nn.functional.embedding_bag(
            i, w, None if offsets is None else torch.tensor(offsets), **options
        ),
        index, draw(6, 4),
    )  # fmt: skip


def test_factors_of_a_bags_rows_agree_with_torch():
    torch = pytest.importorskip("torch")
    index, offsets = rng.integers(0, 6, 7), np.array([0, 2, 5])
    agree(
        lambda w, f: embed.embedding_bag(
            tensor(index), w, tensor(offsets), mode="sum", per_sample_weights=f
        ),
        lambda w, f: torch.nn.functional.embedding_bag(
            torch.tensor(index), w, torch.tensor(offsets), mode="sum", per_sample_weights=f
        ),
        draw(6, 4), draw(7),
    )  # fmt: skip
