"""Shapes: composites against PyTorch, which results share memory, and refusals in its words."""

import numpy as np
import pytest

import distgrad as dg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

X = np.random.default_rng(0).standard_normal((2, 3, 4))
M = X[0]
V = X[0, 0]

SAME_AS_TORCH = {
    "flatten": lambda L, x: L.flatten(x, 1),
    "flatten-0d": lambda L, x: L.flatten(x[0, 0, 0]),
    "ravel": lambda L, x: L.ravel(x),
    "unflatten": lambda L, x: L.unflatten(x, -1, (2, -1)),
    "movedim": lambda L, x: L.movedim(x, (0, 2), (1, 0)),
    "moveaxis": lambda L, x: L.moveaxis(x, 0, -1),
    "swapaxes": lambda L, x: L.swapaxes(x, 0, 2),
    "t": lambda L, x: L.t(x[0]),
    "atleast_3d": lambda L, x: L.atleast_3d(x[0]),
    "atleast_2d": lambda L, x: L.atleast_2d(x[0, 0]),
    "broadcast_to": lambda L, x: L.broadcast_to(x, (5, 2, 3, 4)),
    "chunk": lambda L, x: L.chunk(x, 3, 2),
    "chunk-empty": lambda L, x: L.chunk(x[:, :0], 2, 1),
    "tensor_split": lambda L, x: L.tensor_split(x, 3, 2),
    "tensor_split-indices": lambda L, x: L.tensor_split(x, (1, 3, 9, 2), -1),
    "hsplit": lambda L, x: L.hsplit(x, 3),
    "vsplit": lambda L, x: L.vsplit(x, [1]),
    "dsplit": lambda L, x: L.dsplit(x, 2),
    "split_with_sizes": lambda L, x: L.split_with_sizes(x, [1, 3], 2),
    "hstack": lambda L, x: L.hstack([x[0], x[1]]),
    "vstack": lambda L, x: L.vstack([x[0, 0], x[1]]),
    "dstack": lambda L, x: L.dstack([x[0], x[1]]),
    "column_stack": lambda L, x: L.column_stack([x[0, :, 0], x[1]]),
    "block_diag": lambda L, x: L.block_diag(x[0], x[1, 0], x[1, 1, 1]),
    "cartesian_prod": lambda L, x: L.cartesian_prod(x[0, 0], x[0, 1], x[1, 1]),
    "combinations": lambda L, x: L.combinations(x[0, 0], 3),
    "combinations-again": lambda L, x: L.combinations(x[0, 0], with_replacement=True),
    "meshgrid": lambda L, x: L.meshgrid(x[0, 0], x[0, :, 0], indexing="ij"),
    "meshgrid-xy": lambda L, x: L.meshgrid(x[0, 0], x[0, :, 0], x[:, 0, 0], indexing="xy"),
    "fliplr": lambda L, x: L.fliplr(x),
    "flipud": lambda L, x: L.flipud(x),
    "rot90": lambda L, x: L.rot90(x, 1, (0, 2)),
    "rot90-back": lambda L, x: L.rot90(x, -1, (1, 2)),
    "rot90-half": lambda L, x: L.rot90(x, 2),
    "rot90-none": lambda L, x: L.rot90(x, 4),
    "tile": lambda L, x: L.tile(x, (2,)),
    "repeat_interleave": lambda L, x: L.repeat_interleave(x, 2, 1),
    "repeat_interleave-all": lambda L, x: L.repeat_interleave(x, 3),
    "repeat_interleave-each": lambda L, x: L.repeat_interleave(x, L.tensor([1, 0, 2]), dim=1),
    "diag": lambda L, x: L.diag(x[0], -1),
    "diag-vector": lambda L, x: L.diag(x[0, 0], 1),
    "diagflat": lambda L, x: L.diagflat(x[0], 1),
    "unfold": lambda L, x: x.unfold(2, 2, 1),
    "view": lambda L, x: x.view(6, -1),
    "view_as": lambda L, x: x.view_as(x[:, 0].reshape(8)[:, None].expand(8, 3)),
    "reshape-varargs": lambda L, x: x.reshape(4, 6),
    "permute-varargs": lambda L, x: x.permute(2, 0, 1),
    "expand-varargs": lambda L, x: x[:, :1].expand(-1, 5, -1),
    "repeat-varargs": lambda L, x: x.repeat(1, 2, 1),
    "T": lambda L, x: x[0].T,
    "mT": lambda L, x: x.mT,
    "H": lambda L, x: x[0].H,
    "as_strided": lambda L, x: L.as_strided(x, (2, 2), (5, 1), 3),
    "select_scatter": lambda L, x: L.select_scatter(x, x[1] * 2, 0, 0),
    "slice_scatter": lambda L, x: L.slice_scatter(x, x[:, 1:] * 2, 1, 0, 2),
    "diagonal_scatter": lambda L, x: L.diagonal_scatter(x[0], x[1, :, 0], 1),
    "unsafe_chunk": lambda L, x: L.unsafe_chunk(x, 2, 1),
}


def outputs(result):
    return list(result) if isinstance(result, tuple | list) else [result]


@pytest.mark.parametrize("name", SAME_AS_TORCH)
def test_function_and_its_gradient_agree_with_torch(name):
    function = SAME_AS_TORCH[name]
    theirs, ours = torch.tensor(X, requires_grad=True), dg.tensor(X, requires_grad=True)
    wants, gots = outputs(function(torch, theirs)), outputs(function(dg, ours))
    assert [tuple(o.shape) for o in gots] == [tuple(o.shape) for o in wants]
    total, want_total = 0.0, 0.0
    for place, (got, want) in enumerate(zip(gots, wants, strict=True)):
        np.testing.assert_array_equal(got.detach().numpy(), want.detach().numpy())
        total = (got * got).sum() * (place + 1) + total
        want_total = (want * want).sum() * (place + 1) + want_total
    total.backward()
    want_total.backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-12)


PADS = [
    ("constant", (1, 2), 1.5),
    ("constant", (1, 0, -1, 2, 0, 1), 0.5),
    ("reflect", (2, 3), None),
    ("reflect", (3, 1, 2, 0), None),
    ("replicate", (5, 1), None),
    ("replicate", (1, 1, 4, 0), None),
    ("circular", (4, 3), None),
    ("circular", (1, 2, 3, 0), None),
]


@pytest.mark.parametrize(("mode", "pad", "value"), PADS)
def test_pad_and_its_gradient_agree_with_torch(mode, pad, value):
    x = X if len(pad) != 4 else X[None]
    theirs, ours = torch.tensor(x, requires_grad=True), dg.tensor(x, requires_grad=True)
    want = torch.nn.functional.pad(theirs, pad, mode, value)
    got = dg.nn.functional.pad(ours, pad, mode, value)
    np.testing.assert_array_equal(got.detach().numpy(), want.detach().numpy())
    (want * want).sum().backward()
    (got * got).sum().backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-12)


VIEWS = {
    "reshape": lambda x: x.reshape(8, 3),
    "view": lambda x: x.view(24),
    "flatten": lambda x: x.flatten(),
    "transpose": lambda x: x.transpose(0, 2),
    "permute": lambda x: x.permute(2, 0, 1),
    "T": lambda x: x[0].T,
    "squeeze": lambda x: x[:1].squeeze(0),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "expand": lambda x: x[:, :1].expand(2, 5, 4),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "select": lambda x: x.select(1, 0),
    "diagonal": lambda x: x.diagonal(),
    "unfold": lambda x: x.unfold(2, 2, 1),
    "split": lambda x: x.split(1, 1)[2],
    "chunk": lambda x: x.chunk(2, 2)[1],
    "unbind": lambda x: x.unbind(1)[1],
    "slice": lambda x: x[:, 1:, ::2],
    "movedim": lambda x: x.movedim(0, 1),
    "detach": lambda x: x.detach(),
    "as_strided": lambda x: x.as_strided((3,), (2,)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_share_memory_and_the_version_counter(name):
    x = dg.tensor(X.copy())
    view = VIEWS[name](x)
    assert np.shares_memory(view.array, x.array)
    x.add_(1)
    assert view._version == x._version == 1


@pytest.mark.parametrize("name", ["clone", "flip", "roll", "tril", "repeat", "contiguous"])
def test_copies_do_not_share_memory(name):
    x = dg.tensor(X.copy())
    copy = {
        "clone": x.clone,
        "flip": lambda: x.flip(0),
        "roll": lambda: x.roll(0, 0),
        "tril": x.tril,
        "repeat": lambda: x.repeat(1, 1, 1),
        "contiguous": lambda: x.mT.contiguous(),
    }[name]()
    assert not np.shares_memory(copy.array, x.array)


def test_contiguous_returns_the_tensor_itself_when_it_is():
    x = dg.tensor(X)
    assert x.contiguous() is x


def test_view_reads_the_bytes_as_another_dtype():
    assert dg.tensor([1.0]).view(dg.int32).item() == 0x3F800000


REFUSED = {
    "reshape": (RuntimeError, "is invalid for input of size 24", lambda x: x.reshape(5, 5)),
    "reshape -1": (RuntimeError, "only one dimension can be inferred", lambda x: x.reshape(-1, -1)),
    "view": (RuntimeError, "view size is not compatible", lambda x: x.mT.view(24)),
    "expand": (RuntimeError, "must match the existing size", lambda x: x.expand(2, 5, 4)),
    "expand less": (RuntimeError, "greater or equal to the number", lambda x: x.expand(3, 4)),
    "transpose": (IndexError, "Dimension out of range", lambda x: x.transpose(0, 3)),
    "permute": (RuntimeError, "duplicate dims are not allowed", lambda x: x.permute(0, 0, 1)),
    "squeeze": (IndexError, "Dimension out of range", lambda x: x.squeeze(3)),
    "unsqueeze": (IndexError, "Dimension out of range", lambda x: x.unsqueeze(5)),
    "narrow": (RuntimeError, "exceeds dimension size", lambda x: x.narrow(0, 1, 2)),
    "split": (RuntimeError, "to sum exactly to 3", lambda x: x.split([1, 1], 1)),
    "chunk": (RuntimeError, "greater than 0", lambda x: x.chunk(0)),
    "t": (RuntimeError, "expects a tensor with <= 2 dimensions", lambda x: x.t()),
    "diag": (RuntimeError, "Supports 1D or 2D", lambda x: x.diag()),
    "unflatten": (RuntimeError, "is invalid", lambda x: x.unflatten(1, (2, 2))),
    "flatten": (RuntimeError, "start_dim cannot come after end_dim", lambda x: x.flatten(2, 1)),
    "unfold": (RuntimeError, "maximum size for tensor at dimension", lambda x: x.unfold(0, 3, 1)),
    "repeat": (RuntimeError, "can not be smaller than number", lambda x: x.repeat(2)),
    "cat": (RuntimeError, "Sizes of tensors must match", lambda x: dg.cat([x, x[:, :2]])),
    "cat dims": (RuntimeError, "same number of dimensions", lambda x: dg.cat([x, x[0]])),
    "stack": (RuntimeError, "to be equal size", lambda x: dg.stack([x, x[0]])),
    "pad": (
        RuntimeError,
        "Padding size should be less",
        lambda x: dg.nn.functional.pad(x, (4, 0), "reflect"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_is_refused_with_its_words_and_the_operands(name):
    kind, words, mistake = REFUSED[name]
    with pytest.raises(kind, match=words) as caught:
        mistake(dg.tensor(X))
    assert "float64[2, 3, 4]" in str(caught.value) or "float64[2, 4, 3]" in str(caught.value)
