"""Products: einsum and the composites against PyTorch, copies for BLAS, refusals in its words."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.backend import numpy_backend

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

EQUATIONS = [
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("ij->ji", (2, 3)),
    ("ii->i", (3, 3)),
    ("ii", (3, 3)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    ("bhid,bhjd->bhij", (2, 2, 3, 4), (2, 2, 5, 4)),
    ("...ij,...jk", (2, 3, 4), (4, 5)),
    ("i,j->ij", (3,), (4,)),
    ("ij,kl->", (2, 3), (2, 2)),
    ("ijj->i", (2, 3, 3)),
    ("aab,bc->ac", (2, 2, 3), (3, 4)),
    ("i...->...", (2, 3, 4)),
    ("ij,jk->ik", (2, 1), (3, 4)),
    ("a,b,c->abc", (2,), (3,), (4,)),
    ("abc,cd,de->abe", (2, 3, 4), (4, 5), (5, 2)),
    ("ab,bc,cd,de->ae", (2, 3), (3, 4), (4, 5), (5, 6)),
    ("abi,bci,cdi->adi", (2, 3, 4), (3, 5, 4), (5, 6, 4)),
    ("Ab,bA", (2, 3), (3, 2)),
]


def outcome(out, tensors):
    """Return the output and the gradients of the sum of its squares."""
    (out * out).sum().backward()
    return out.detach().numpy(), [None if t.grad is None else t.grad.numpy() for t in tensors]


def assert_same(results):
    (want, wants), (got, gots) = results
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    for g, w in zip(gots, wants, strict=True):
        np.testing.assert_allclose(
            0.0 if g is None else g, 0.0 if w is None else w, rtol=1e-9, atol=1e-11
        )


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return [np.asarray(rng.standard_normal(s)) for s in shapes]


@pytest.mark.parametrize(("equation", "shapes"), [(e, s) for e, *s in EQUATIONS])
def test_einsum_and_its_gradients_agree_with_torch(equation, shapes):
    results = []
    for library in (torch, dg):
        tensors = [library.tensor(a, requires_grad=True) for a in drawn(*shapes)]
        results.append(outcome(library.einsum(equation, *tensors), tensors))
    assert_same(results)


def test_einsum_takes_lists_of_numbers_for_letters():
    a, b = (dg.tensor(x) for x in drawn((2, 3), (3, 4)))
    want = a @ b
    np.testing.assert_allclose(dg.einsum(a, [0, 1], b, [1, 2], [0, 2]).numpy(), want.numpy())


@pytest.mark.parametrize(
    ("equation", "shapes", "words"),
    [
        ("ij,jk", [(2, 3)], "fewer operands were provided"),
        ("ij", [(2, 3), (2, 3)], "more operands were provided"),
        ("ij", [(2, 3, 4)], "does not match the number of dimensions"),
        ("ij,jk->ik", [(2, 3), (4, 5)], "does not broadcast with previously seen size 3"),
        ("ij->ii", [(2, 2)], "appears more than once in the output"),
        ("ij->k", [(2, 2)], "does not appear in the equation"),
        ("i1", [(2, 2)], "invalid subscript given"),
        ("ii", [(2, 3)], "is repeated"),
    ],
)
def test_einsum_refuses_what_torch_refuses(equation, shapes, words):
    with pytest.raises(RuntimeError, match=words):
        dg.einsum(equation, *[dg.tensor(a) for a in drawn(*shapes)])


COMPOSITES = [
    ("mm", [(2, 3), (3, 4)], {}),
    ("bmm", [(2, 2, 3), (2, 3, 2)], {}),
    ("mv", [(2, 3), (3,)], {}),
    ("dot", [(3,), (3,)], {}),
    ("vdot", [(3,), (3,)], {}),
    ("inner", [(2, 3), (4, 3)], {}),
    ("inner", [(), (3,)], {}),
    ("outer", [(2,), (3,)], {}),
    ("ger", [(2,), (3,)], {}),
    ("addmm", [(2, 2), (2, 3), (3, 2)], {"beta": 0.5, "alpha": 2}),
    ("addmm", [(2,), (2, 3), (3, 2)], {"beta": 0}),
    ("addmv", [(2,), (2, 3), (3,)], {}),
    ("addr", [(2, 3), (2,), (3,)], {"alpha": 3}),
    ("baddbmm", [(2, 2, 2), (2, 2, 3), (2, 3, 2)], {}),
    ("addbmm", [(2, 2), (2, 2, 3), (2, 3, 2)], {"alpha": 2.0}),
    ("tensordot", [(2, 3, 4), (3, 4, 5)], {}),
    ("tensordot", [(2, 3, 4), (4, 2)], {"dims": ([2, 0], [0, 1])}),
    ("tensordot", [(2,), (3,)], {"dims": 0}),
    ("kron", [(2, 3), (3, 2)], {}),
    ("kron", [(2,), (2, 3, 2)], {}),
    ("chain_matmul", [(2, 3), (3, 9), (9, 2), (2, 5)], {}),
    ("cross", [(4, 3), (4, 3)], {"dim": 1}),
    ("trace", [(3, 4)], {}),
    ("bilinear", [(5, 3), (5, 4), (2, 3, 4), (2,)], {}),
]


@pytest.mark.filterwarnings("ignore:torch.chain_matmul")
@pytest.mark.parametrize(("name", "shapes", "options"), COMPOSITES)
def test_products_and_their_gradients_agree_with_torch(name, shapes, options):
    results = []
    for library in (torch, dg):
        tensors = [library.tensor(a, requires_grad=True) for a in drawn(*shapes)]
        results.append(outcome(getattr(library, name)(*tensors, **options), tensors))
    assert_same(results)


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        ("cannot be multiplied", lambda a, b: a @ b),
        ("must be a matrix", lambda a, b: dg.mm(a[0], b)),
        ("must be a 3D tensor", lambda a, b: dg.bmm(a, b)),
        ("must be a vector", lambda a, b: dg.dot(a, b)),
        ("inconsistent tensor size", lambda a, b: dg.dot(a[0], b[0, :2])),
        ("same dtype", lambda a, b: a @ b.float().mT),
        ("at least 1D", lambda a, b: a @ dg.tensor(1.0)),
        ("cannot be multiplied", lambda a, b: dg.nn.functional.linear(a, b[:, :2])),
        ("must have length 3", lambda a, b: dg.cross(a, b[:, :2])),
        ("contracted dimensions", lambda a, b: dg.tensordot(a, b[:, :2], 1)),
    ],
)
def test_operands_that_do_not_fit_are_refused(words, mistake):
    a, b = (dg.tensor(x) for x in drawn((2, 3), (4, 3)))
    with pytest.raises(RuntimeError, match=words) as caught:
        mistake(a, b)
    assert "float64[" in str(caught.value)


def test_half_precision_adds_up_in_float32():
    a = dg.full((1, 4096), 0.1).half()
    want = float(np.float16(0.1)) ** 2 * 4096
    assert abs((a @ a.mT).item() - want) < 0.05


LAYOUTS = {
    "rows with gaps": lambda x: x[:, ::2],
    "columns with gaps": lambda x: x[::2].T,
    "both with gaps": lambda x: x[::2, ::2],
    "expanded": lambda x: np.broadcast_to(x[:1], x.shape),
    "expanded number": lambda x: np.broadcast_to(x[:1, :1], x.shape),
    "reversed": lambda x: x[::-1, ::-1],
    "transposed": lambda x: x.T,
}


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_every_layout_in_memory_gives_the_same_product(left, right):
    x = np.random.default_rng(0).standard_normal((8, 8))
    a, b = LAYOUTS[left](x), LAYOUTS[right](x)
    a = a[:, : min(a.shape[1], b.shape[0])]
    b = b[: a.shape[1]]
    want = np.ascontiguousarray(a) @ np.ascontiguousarray(b)
    np.testing.assert_allclose(numpy_backend.gemm(a, b), want, rtol=1e-12)


@pytest.mark.parametrize("shapes", [[(2, 3, 4), (5, 4), (5,)], [(4,), (5, 4)], [(3, 4), (4,)]])
def test_linear_and_its_gradients_agree_with_torch(shapes):
    results = []
    for library in (torch, dg):
        tensors = [library.tensor(a, requires_grad=True) for a in drawn(*shapes)]
        results.append(outcome(library.nn.functional.linear(*tensors), tensors))
    assert_same(results)
