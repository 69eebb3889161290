"""Normalisation and attention: what samples cannot say."""

import itertools

import numpy as np
import pytest

import distgrad.ops
from distgrad.errors import ArgumentError, DtypeError, ShapeError
from distgrad.ops import attention as attention_chapter
from distgrad.ops.attention import scaled_dot_product_attention
from distgrad.ops.norm import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    normalize,
    rms_norm,
)
from distgrad.testing.torch_pairs import agree, draw, tensor


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 5), (70, 3, 20, 20)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_agrees_with_torch_in_training_and_moves_the_running_statistics(shape, affine):
    torch = pytest.importorskip("torch")
    running = draw(3), abs(draw(3)) + 1
    ours, theirs = [tensor(a) for a in running], [torch.tensor(a) for a in running]
    extra = [draw(3), draw(3)] if affine else []
    agree(
        lambda x, *wb: batch_norm(x, *ours, *wb, training=True, momentum=0.3),
        lambda x, *wb: torch.nn.functional.batch_norm(x, *theirs, *wb, training=True, momentum=0.3),
        draw(*shape), *extra,
    )  # fmt: skip
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.array, b.numpy(), rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 5)])
def test_batch_norm_uses_the_running_statistics_in_evaluation(shape):
    torch = pytest.importorskip("torch")
    mean, var = draw(3), abs(draw(3)) + 1
    agree(
        lambda x, w, b: batch_norm(x, tensor(mean), tensor(var), w, b),
        lambda x, w, b: torch.nn.functional.batch_norm(
            x, torch.tensor(mean), torch.tensor(var), w, b
        ),
        draw(*shape), draw(3), draw(3),
    )  # fmt: skip


@pytest.mark.parametrize("use_input_stats", [True, False])
def test_instance_norm_agrees_with_torch(use_input_stats):
    torch = pytest.importorskip("torch")
    running = draw(3), abs(draw(3)) + 1
    ours, theirs = [tensor(a) for a in running], [torch.tensor(a) for a in running]
    agree(
        lambda x, w, b: instance_norm(x, *ours, w, b, use_input_stats),
        lambda x, w, b: torch.nn.functional.instance_norm(x, *theirs, w, b, use_input_stats),
        draw(2, 3, 4, 5), draw(3), draw(3),
    )  # fmt: skip
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.array, b.numpy(), rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_agrees_with_torch(groups):
    torch = pytest.importorskip("torch")
    agree(
        lambda x, w, b: group_norm(x, groups, w, b),
        lambda x, w, b: torch.nn.functional.group_norm(x, groups, w, b),
        draw(2, 6, 3, 4), draw(6), draw(6),
    )  # fmt: skip


@pytest.mark.parametrize("rows", [3, 2000])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_norms_over_features_agree_with_torch_far_from_zero(norm, rows):
    torch = pytest.importorskip("torch")
    ours = {"layer_norm": layer_norm, "rms_norm": rms_norm}[norm]
    theirs = getattr(torch.nn.functional, norm)
    agree(
        lambda x, w: ours(x, [40], w), lambda x, w: theirs(x, [40], w),
        draw(rows, 40) + 10, draw(40),
    )  # fmt: skip


def test_float16_is_normalised_in_float32():
    x = tensor((draw(4, 64) * 300).astype(np.float16))
    out = layer_norm(x, [64])
    assert out.array.dtype == np.float16
    assert np.isfinite(out.array).all()


@pytest.mark.parametrize("size", [2, 3])
def test_local_response_norm_agrees_with_torch(size):
    torch = pytest.importorskip("torch")
    agree(
        lambda x: local_response_norm(x, size, 0.1, 0.7, 1.5),
        lambda x: torch.nn.functional.local_response_norm(x, size, 0.1, 0.7, 1.5),
        draw(2, 5, 3, 4),
    )


@pytest.mark.parametrize(("p", "dim"), [(2.0, 1), (1.0, 0), (3.0, -1)])
def test_normalize_agrees_with_torch(p, dim):
    torch = pytest.importorskip("torch")
    agree(
        lambda x: normalize(x, p, dim), lambda x: torch.nn.functional.normalize(x, p, dim),
        draw(3, 4),
    )  # fmt: skip


def test_normalize_leaves_a_zero_vector_at_zero_with_a_finite_gradient():
    torch = pytest.importorskip("torch")
    agree(normalize, torch.nn.functional.normalize, np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: layer_norm(tensor(draw(3, 5)), [4]), ShapeError,
         r"Given normalized_shape=\[4\], expected input with shape \[\*, 4\]"),
        (lambda: layer_norm(tensor(draw(3, 5)), [5], tensor(draw(4))), ShapeError,
         "Expected weight to be of same shape as normalized_shape"),
        (lambda: layer_norm(tensor(np.ones((3, 5), int)), [5]), DtypeError, "floating point"),
        (lambda: batch_norm(tensor(draw(1, 3)), None, None, training=True), ArgumentError,
         "Expected more than 1 value per channel"),
        (lambda: batch_norm(tensor(draw(2, 3)), tensor(draw(4)), tensor(draw(3))), ShapeError,
         "running_mean should contain 3 elements"),
        (lambda: batch_norm(tensor(draw(2, 3)), None, None), ShapeError, "defined when training"),
        (lambda: group_norm(tensor(draw(2, 6)), 4), ShapeError, "6 % 4 != 0"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_norm_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


# ---------------------------------------------------------------------- attention
def _pair(torch, **options):
    return (
        lambda q, k, v: scaled_dot_product_attention(q, k, v, **options),
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, **options),
    )


@pytest.mark.parametrize("lengths", [(5, 5), (3, 7), (7, 3), (200, 200), (150, 260), (260, 150)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 30.0])
def test_attention_agrees_with_torch_for_short_and_long_sequences(lengths, causal, scale):
    torch = pytest.importorskip("torch")
    rows, columns = lengths
    agree(
        *_pair(torch, is_causal=causal, scale=scale),
        draw(2, 2, rows, 4), draw(2, 2, columns, 4), draw(2, 2, columns, 3),
    )  # fmt: skip


@pytest.mark.parametrize("length", [6, 150])
@pytest.mark.parametrize("lead", [(), (2, 1), (2, 3)])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_agree_with_torch_and_a_row_of_nothing_gives_zeros(length, lead, kind):
    torch = pytest.importorskip("torch")
    mask = np.random.default_rng(3).random((*lead, length, length)) < 0.6
    mask[..., 1, :] = False
    if kind == "float":
        mask = np.where(mask, draw(*mask.shape), -np.inf)
    agree(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, tensor(mask)),
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, torch.tensor(mask)
        ),
        draw(2, 3, length, 4), draw(2, 3, length, 4), draw(2, 3, length, 4),
    )  # fmt: skip


@pytest.mark.parametrize("length", [5, 150])
def test_grouped_queries_agree_with_torch(length):
    torch = pytest.importorskip("torch")
    agree(
        *_pair(torch, enable_gqa=True, is_causal=True),
        draw(2, 6, length, 4), draw(2, 2, length, 4), draw(2, 2, length, 4),
    )  # fmt: skip


@pytest.mark.parametrize("length", [5, 150])
def test_dropout_drops_the_weights_that_torch_drops(length):
    torch = pytest.importorskip("torch")
    q, k, v = draw(1, 2, length, 4), draw(1, 2, length, 4), draw(1, 2, length, 4)
    distgrad.backend.random.manual_seed(5)
    out = scaled_dot_product_attention(tensor(q), tensor(k), tensor(v), dropout_p=0.4)
    torch.manual_seed(5)
    want = torch.nn.functional.scaled_dot_product_attention(
        torch.tensor(q), torch.tensor(k), torch.tensor(v), dropout_p=0.4
    )
    np.testing.assert_allclose(out.array, want.numpy(), rtol=1e-9)


def test_heads_that_are_a_view_of_the_features_stay_one_in_the_result():
    x = draw(2, 5, 3, 4)
    heads = tensor(x.transpose(0, 2, 1, 3))
    out = scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    assert out.array.transpose(0, 2, 1, 3).flags.c_contiguous


def test_logits_of_any_size_overflow_nowhere():
    q = tensor(np.array([[[3e4, 0.0], [-3e4, 0.0], [1e-3, 1.0]]], np.float32))
    for causal, length in itertools.product([False, True], [1, 60]):
        k = tensor(np.tile(q.array, (1, length, 1)))
        out = scaled_dot_product_attention(q, k, k, is_causal=causal)
        assert np.isfinite(out.array).all()


@pytest.mark.parametrize(
    ("shapes", "options", "error", "text"),
    [
        (((4,), (4, 4), (4, 4)), {}, ShapeError, "at least 2 dimensional"),
        (((3, 4), (5, 6), (5, 4)), {}, ShapeError, "same last size"),
        (((3, 4), (5, 4), (6, 4)), {}, ShapeError, "same length"),
        (((3, 4), (5, 4), (5, 4)), {"attn_mask": (3, 4)}, ShapeError, r"broadcast to \(\*, 3, 5\)"),
        (((3, 4), (5, 4), (5, 4)), {"dropout_p": 1.5}, ArgumentError, "between 0 and 1"),
        (((5, 3, 4), (2, 3, 4), (2, 3, 4)), {"enable_gqa": True}, ShapeError, "divide"),
        (((2, 3, 4), (3, 3, 4), (3, 3, 4)), {}, ShapeError, r"are \[2\], \[3\], \[3\]"),
    ],
)
def test_a_mistake_in_attention_is_named(shapes, options, error, text):
    operands = [tensor(draw(*shape)) for shape in shapes]
    if "attn_mask" in options:
        options = {"attn_mask": tensor(draw(*options["attn_mask"]))}
    with pytest.raises(error, match=text):
        scaled_dot_product_attention(*operands, **options)


def test_operands_of_different_dtypes_are_refused():
    q = tensor(draw(3, 4).astype(np.float32))
    with pytest.raises(DtypeError, match="same dtype"):
        scaled_dot_product_attention(q, tensor(draw(3, 4)), q)


def test_long_sequences_keep_no_square_for_backward():
    x = tensor(draw(1, 300, 4)).requires_grad_()
    node = attention_chapter.attention(x, x, x, None, None, 0.5, True)[0]._node
    assert max(np.size(getattr(s, "array", s)) for s in node.saved if s is not None) <= 300 * 4
