"""Decompositions beside PyTorch: halves that are read, complex matrices, singular ones, pivots."""

import numpy as np
import pytest

import distgrad as dg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def drawn(*shape, complex_=False, seed=0):
    rng = np.random.default_rng(seed + len(shape))
    a = rng.standard_normal(shape)
    return a + 1j * rng.standard_normal(shape) if complex_ else a


def positive(n, *, lead=(), complex_=False):
    a = drawn(*lead, n, n, complex_=complex_)
    return a @ a.conj().swapaxes(-1, -2) + np.eye(n)


def both(function, *arrays):
    """Return results and gradients of ``function(library, *tensors)`` in torch and here."""
    found = []
    for library in (torch, dg):
        tensors = [library.tensor(a, requires_grad=True) for a in arrays]
        out = function(library, *tensors)
        loss = (out * out.conj()).real.sum() if out.is_complex() else (out * out).sum()
        loss.backward()
        grads = [np.zeros(t.shape) if t.grad is None else t.grad.numpy() for t in tensors]
        found.append((out.detach().numpy(), grads))
    return found


def agree(function, *arrays):
    (want, wants), (got, gots) = both(function, *arrays)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10)
    for g, w in zip(gots, wants, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-6, atol=1e-8)


COMPLEX = pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])


# ---------------------------------------------------------------------- one half is read
@COMPLEX
@pytest.mark.parametrize("half", ["L", "U"])
def test_eigh_reads_one_half_and_its_gradient_is_that_of_both(half, complex_):
    a = drawn(3, 3, complex_=complex_)
    weights = drawn(3)

    def value(library, x):
        values, vectors = library.linalg.eigh(x, half)
        return values * library.tensor(weights) + (vectors.abs() ** 4).sum(-2)

    agree(value, a)
    agree(lambda library, x: library.linalg.eigvalsh(x, half), a)


@COMPLEX
@pytest.mark.parametrize("upper", [False, True])
def test_cholesky_reads_one_half_and_its_gradient_is_that_of_both(upper, complex_):
    a = positive(3, lead=(2,), complex_=complex_)
    other = np.triu(np.full((3, 3), 0.5), 1) if not upper else np.tril(np.full((3, 3), 0.5), -1)
    agree(lambda library, x: library.linalg.cholesky(x, upper=upper), a + other)


@pytest.mark.parametrize("function", [
    lambda a: dg.linalg.eigh(a @ a.mT)[0],
    lambda a: dg.linalg.eigh(a @ a.mT)[1].square(),
    lambda a: dg.linalg.eigvalsh(a @ a.mT, "U"),
    lambda a: dg.linalg.cholesky(a @ a.mT + dg.eye(3, dtype=dg.float64)),
    lambda a: dg.linalg.cholesky(a @ a.mT, upper=True),
    lambda a: dg.cholesky_inverse((a + 3).tril()),
    lambda a: dg.cholesky_solve(a, (a + 3).tril()),
    lambda a: dg.linalg.eigvals(a @ a.mT).real,
])  # fmt: skip
def test_derivatives_of_what_reads_one_half_agree_with_finite_differences(function):
    a = dg.tensor(drawn(3, 3, seed=5), requires_grad=True)
    assert dg.autograd.gradcheck(function, (a,))
    assert dg.autograd.gradgradcheck(function, (a,))
    along = dg.tensor(drawn(3, 3, seed=6))
    _, slope = dg.func.jvp(function, (a.detach(),), (along,))
    step = along * 1e-6
    wanted = (function(a.detach() + step) - function(a.detach() - step)) / 2e-6
    np.testing.assert_allclose(slope.numpy(), wanted.numpy(), rtol=1e-5, atol=1e-6)


@COMPLEX
@pytest.mark.parametrize("upper", [False, True])
def test_gradients_of_solutions_by_a_cholesky_factor(upper, complex_):
    factor = np.linalg.cholesky(positive(3, complex_=complex_))
    factor = factor.conj().T.copy() if upper else factor
    b = drawn(3, 2, complex_=complex_)
    agree(lambda library, x: library.cholesky_inverse(x, upper), factor)
    agree(lambda library, x, y: library.cholesky_solve(x, y, upper), b, factor)


# ---------------------------------------------------------------------- complex gradients
@pytest.mark.parametrize("name", ["inv", "det", "pinv", "svdvals", "matrix_exp", "eigvals"])
def test_gradients_at_complex_matrices(name):
    def value(library, x):
        out = getattr(library.linalg, name)(x)
        return out.abs().sum(-1) if name == "eigvals" else out

    agree(value, drawn(2, 3, 3, complex_=True))


@COMPLEX
@pytest.mark.parametrize("shape", [(4, 2), (2, 4), (3, 3)])
def test_gradients_through_factors_that_are_unique_up_to_signs(shape, complex_):
    a = drawn(*shape, complex_=complex_)

    def of_svd(library, x):
        u, s, vh = library.linalg.svd(x, full_matrices=True)
        k = s.shape[-1]
        return u[:, :k].abs() @ (s.unsqueeze(-1) * vh[:k].abs())

    agree(of_svd, a)
    agree(lambda library, x: library.linalg.qr(x)[1].abs(), a)
    agree(lambda library, x: library.linalg.lu(x)[2], a)
    agree(lambda library, x: library.linalg.lu(x)[1], a)


def test_slogdet_of_complex_matrices_has_a_gradient_by_its_sign():
    def value(library, x):
        sign, size = library.linalg.slogdet(x)
        return sign * size

    agree(value, drawn(2, 3, 3, complex_=True))
    agree(lambda library, x: library.logdet(x), drawn(3, 3, complex_=True))


@pytest.mark.parametrize("name", ["svd", "eigh", "eig"])
def test_a_loss_that_depends_on_the_phase_of_vectors_is_refused(name):
    a = dg.tensor(positive(3, complex_=True), requires_grad=True)
    found = getattr(dg.linalg, name)(a)
    with pytest.raises(RuntimeError, match="phase"):
        found[0 if name == "svd" else 1].imag.sum().backward()


# ---------------------------------------------------------------------- what does not exist
def test_a_singular_matrix_of_a_batch_is_named_by_its_pivot():
    a = drawn(3, 3, 3)
    a[1] = np.outer([1.0, 2, 3], [1.0, 0, 2])
    b = drawn(3, 3, 1)
    for call in ("inv_ex", "solve_ex", "lu_factor_ex"):
        operands = (a, b) if call == "solve_ex" else (a,)
        want = getattr(torch.linalg, call)(*map(torch.tensor, operands))
        got = getattr(dg.linalg, call)(*map(dg.tensor, operands))
        assert (got.info.numpy() > 0).tolist() == (want.info.numpy() > 0).tolist()
        np.testing.assert_allclose(got[0].numpy()[[0, 2]], want[0].numpy()[[0, 2]])
        with pytest.raises(dg.linalg.LinAlgError):
            getattr(dg.linalg, call)(*map(dg.tensor, operands), check_errors=True)
    with pytest.raises(RuntimeError, match="singular"):
        dg.linalg.inv(dg.tensor(a))


def test_cholesky_ex_tells_the_order_of_the_minor_that_fails():
    a = np.stack([np.eye(3), np.diag([1.0, -1, 1]), np.diag([4.0, 1, -2])])
    found = dg.linalg.cholesky_ex(dg.tensor(a))
    want = torch.linalg.cholesky_ex(torch.tensor(a))
    assert found.info.tolist() == want.info.tolist() == [0, 2, 3]
    np.testing.assert_allclose(found.L.numpy()[0], want.L.numpy()[0])
    assert np.isnan(found.L.numpy()[1:]).all()


def test_a_triangular_system_with_a_zero_on_the_diagonal_gives_inf_as_in_torch():
    a, b = np.array([[1.0, 2], [0, 0]]), np.eye(2)
    got = dg.linalg.solve_triangular(dg.tensor(a), dg.tensor(b), upper=True).numpy()
    want = torch.linalg.solve_triangular(torch.tensor(a), torch.tensor(b), upper=True).numpy()
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))


# ---------------------------------------------------------------------- pivots
@pytest.mark.parametrize("hermitian", [False, True])
@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_ldl_agrees_with_lapack_and_solves(n, complex_, hermitian):
    for seed in range(4):
        a = drawn(2, n, n, complex_=complex_, seed=seed)
        a[0] *= 1 - 0.999 * np.eye(n)  # small diagonals need pivots of two rows
        a = a + (a.conj() if hermitian else a).swapaxes(-1, -2)
        want = torch.linalg.ldl_factor(torch.tensor(a), hermitian=hermitian)
        got = dg.linalg.ldl_factor(dg.tensor(a), hermitian=hermitian)
        np.testing.assert_array_equal(got.pivots.numpy(), want.pivots.numpy())
        np.testing.assert_allclose(got.LD.numpy(), want.LD.numpy(), atol=1e-10)
        b = drawn(n, 2, complex_=complex_)
        x = dg.linalg.ldl_solve(*got, dg.tensor(b), hermitian=hermitian).numpy()
        np.testing.assert_allclose(a @ x, np.broadcast_to(b, x.shape), atol=1e-8)


def test_a_pivot_of_complex_numbers_is_chosen_as_lapack_chooses():
    a = np.array([[3 + 0j, 1], [2.2 + 2j, 5]])  # |3| < 4.2, the sum of both parts
    assert dg.linalg.lu_factor(dg.tensor(a)).pivots.tolist() == [2, 2]
    assert torch.linalg.lu_factor(torch.tensor(a)).pivots.tolist() == [2, 2]


# ---------------------------------------------------------------------- names outside dg.linalg
@pytest.mark.filterwarnings("ignore:torch.*deprecated", "ignore:.*deprecated")
def test_old_names_return_what_torch_returns():
    a, b = drawn(3, 3), drawn(3, 2)
    for name, arrays, options in [
        ("svd", [a], {"compute_uv": False}), ("svd", [b], {"some": False}),
        ("qr", [b], {"some": False}), ("qr", [b], {}), ("lu", [a], {"get_infos": True}),
        ("triangular_solve", [b, a], {"upper": False, "transpose": True}), ("geqrf", [b], {}),
    ]:  # fmt: skip
        want = getattr(torch, name)(*map(torch.tensor, arrays), **options)
        got = getattr(dg, name)(*map(dg.tensor, arrays), **options)
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            np.testing.assert_allclose(np.abs(g.numpy()), np.abs(w.numpy()), atol=1e-12)
    factors = dg.lu(dg.tensor(a))
    np.testing.assert_allclose(a @ dg.lu_solve(dg.tensor(b), *factors).numpy(), b, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 9, 5)])
def test_a_random_sketch_draws_the_same_numbers_as_torch(shape):
    a, m = drawn(*shape), drawn(*shape, seed=3)
    for name, options in (("svd_lowrank", {"M": m}), ("pca_lowrank", {})):
        torch.manual_seed(4)
        dg.manual_seed(4)
        parts = [
            getattr(library, name)(
                library.tensor(a), q=3, **{k: library.tensor(v) for k, v in options.items()}
            )
            for library in (torch, dg)
        ]
        for want, got in zip(*parts, strict=True):
            np.testing.assert_allclose(np.abs(got.numpy()), np.abs(want.numpy()), atol=1e-9)


@pytest.mark.parametrize("largest", [True, False])
def test_lobpcg_finds_the_ends_of_the_spectrum(largest):
    a, b = positive(9), positive(9)
    values, vectors = dg.lobpcg(dg.tensor(a), k=2, B=dg.tensor(b), largest=largest)
    np.testing.assert_allclose(a @ vectors.numpy(), b @ vectors.numpy() * values.numpy(),
                               atol=1e-8)  # fmt: skip
    every = np.sort(np.linalg.eigvals(np.linalg.solve(b, a)).real)
    np.testing.assert_allclose(values.numpy(), every[:-3:-1] if largest else every[:2])


def test_the_namespace_is_that_of_torch():
    names = {n for n in dir(torch.linalg) if not n.startswith("_")}
    assert names - {"Tensor", "common_notes"} <= set(dg.linalg.__all__)


@pytest.mark.parametrize("mistake", [
    lambda t, lib: lib.linalg.inv(t.long()),
    lambda t, lib: lib.linalg.det(t.half()),
    lambda t, lib: lib.linalg.svd(t.half()),
    lambda t, lib: lib.linalg.qr(t, mode="full"),
    lambda t, lib: lib.linalg.eigh(t, "X"),
    lambda t, lib: lib.linalg.eig(t * float("nan")),
    lambda t, lib: lib.linalg.eig(t[0]),
    lambda t, lib: lib.linalg.lu(t, pivot=False),
    lambda t, lib: lib.linalg.lu_factor(t * 0),
    lambda t, lib: lib.linalg.ldl_factor(t * 0),
    lambda t, lib: lib.linalg.solve(t, t.double()),
    lambda t, lib: lib.linalg.solve_triangular(t, t[:2], upper=True),
    lambda t, lib: lib.linalg.svdvals(t, driver="gesvd"),
    lambda t, lib: lib.linalg.tensorinv(t, 0),
    lambda t, lib: lib.linalg.tensorsolve(t, t),
    lambda t, lib: lib.linalg.vander(t, N=1),
    lambda t, lib: lib.linalg.lstsq(t, t[:2]),
    lambda t, lib: lib.linalg.lstsq(t, t, driver="x"),
    lambda t, lib: lib.linalg.householder_product(t[:2], t[0]),
    lambda t, lib: lib.ormqr(t, t[0], t[:2]),
    lambda t, lib: lib.lu_unpack(t, t[0]),
    lambda t, lib: lib.cholesky_solve(t[:2], t),
    lambda t, lib: lib.linalg.matrix_norm(t, 3),
    lambda t, lib: lib.linalg.matrix_norm(t, dim=(0, 0)),
    lambda t, lib: lib.linalg.vector_norm(t, dtype=lib.complex64),
    lambda t, lib: lib.linalg.norm(t.reshape(1, 3, 3), 2),
    lambda t, lib: lib.linalg.cond(t[:2], 1),
    lambda t, lib: lib.linalg.cross(t, t[:, :1]),
    lambda t, lib: lib.geqrf(t).a.sum().backward(),
    lambda t, lib: t.bool() @ t.bool(),
    lambda t, lib: lib.addmm(t, t.double(), t.double()),
    lambda t, lib: lib.addr(t.int(), t[0].int(), t[0].int(), beta=0.5),
])  # fmt: skip
def test_both_libraries_refuse_the_same_mistakes(mistake):
    a = (drawn(3, 3) + np.eye(3)).astype(np.float32)
    with pytest.raises(Exception) as theirs:
        mistake(torch.tensor(a), torch)
    builtin = next(k for k in type(theirs.value).__mro__ if k.__module__ == "builtins")
    with pytest.raises(builtin):
        mistake(dg.tensor(a), dg)


@pytest.mark.filterwarnings("ignore:at.*deprecated", "ignore:torch.*deprecated")
def test_norms_and_powers_outside_the_namespace():
    a = drawn(2, 3, 4)
    for call in (
        lambda lib, x: lib.frobenius_norm(x, (0, 2), True),
        lambda lib, x: lib.nuclear_norm(x[0], True),
        lambda lib, x: lib.nuclear_norm(x, (0, 1)),
        lambda lib, x: lib.matrix_power(input=x[:, :, :3], n=-1),
        lambda lib, x: lib.cholesky(x[0, :2, :2] @ x[0, :2, :2].mT, True),
    ):
        agree(call, a)


@pytest.mark.parametrize("function", [
    lambda x: dg.linalg.svd(x)[1], dg.linalg.svdvals, dg.linalg.inv, dg.linalg.det, dg.linalg.pinv,
    lambda x: dg.linalg.lu(x)[2], lambda x: dg.linalg.eigh(x @ x.mT)[0], dg.linalg.matrix_exp,
    lambda x: dg.linalg.cholesky(x @ x.mT), lambda x: dg.linalg.solve(x, x[0]),
    lambda x: dg.linalg.solve_triangular(x, x, upper=True), lambda x: dg.linalg.slogdet(x)[1],
    lambda x: dg.linalg.lstsq(x, x[:, :1]).solution, lambda x: dg.linalg.inv_ex(x).inverse,
    lambda x: dg.linalg.householder_product(x, x[0]), lambda x: dg.linalg.norm(x, "nuc"),
    lambda x: dg.linalg.eigvals(x).abs().sum(),
])  # fmt: skip
def test_vmap_gives_what_a_loop_gives(function):
    a = dg.tensor(drawn(3, 4, 4))
    want = dg.stack([function(x) for x in a])
    np.testing.assert_allclose(dg.vmap(function)(a).numpy(), want.numpy(), atol=1e-10)


@pytest.mark.parametrize("mistake", [
    lambda t, lib: lib.einsum("ij"),
    lambda t, lib: lib.einsum(t, [0, 99]),
    lambda t, lib: lib.chain_matmul(),
    lambda t, lib: lib.trace(t.bool()),
    lambda t, lib: lib.cross(t, t.int()),
    lambda t, lib: lib.addmm(t, t, t, alpha=2j),
    lambda t, lib: lib.linalg.vecdot(t, t.double()),
    lambda t, lib: lib.linalg.vector_norm(t[:0], -1.0),
    lambda t, lib: lib.linalg.matrix_norm(t, dim=0),
    lambda t, lib: lib.cholesky_inverse(t * 0),
    lambda t, lib: lib.lobpcg(t, k=2),
])  # fmt: skip
def test_both_libraries_refuse_the_same_arguments(mistake):
    test_both_libraries_refuse_the_same_mistakes(mistake)


@pytest.mark.parametrize("options", [{"N": 3}, {"increasing": True}, {"N": 0}, {}])
def test_powers_of_a_vector_decrease_unless_asked(options):
    x = drawn(4)
    want = torch.vander(torch.tensor(x), **options).numpy()
    np.testing.assert_allclose(dg.vander(dg.tensor(x), **options).numpy(), want)
