"""Constraints and transforms against PyTorch's, and how distributions are made of them."""

import math
import pickle

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributions import biject_to, constraints, transform_to, transforms

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

RNG = np.random.default_rng(3)
X = RNG.standard_normal((2, 4))
POSITIVE = RNG.uniform(0.2, 3, (2, 4))


def named(library, text, **more):
    """What ``text`` says in terms of ``T`` (transforms), ``C`` (constraints), ``D``, ``t``."""
    D = library.distributions
    names = {"T": D.transforms, "C": D.constraints, "D": D, "lib": library}
    names["t"] = lambda values: library.tensor(values, dtype=library.float64)
    return eval(text, {**names, **more})


# ---------------------------------------------------------------------- constraints
MATRICES = np.stack([
    np.eye(3), [[2, 1, 0], [1, 2, 0], [0, 0, 1]], [[1, 0, 0], [0.6, 0.8, 0], [0, 0.6, 0.8]],
    [[1, 2, 0], [2, 1, 0], [0, 0, 1]], [[1, 2, 3], [0, 1, 2], [0, 0, 1]], np.zeros((3, 3)),
    -np.eye(3), [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 2]],
])  # fmt: skip
NUMBERS = np.array([-math.inf, -2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, math.inf, math.nan])
VECTORS = np.array([
    [0, 0, 1], [1, 1, 0], [0.2, 0.3, 0.5], [0.2, 0.3, 0.6], [-0.5, 0.5, 1], [2, 1, 0], [3, 3, 3],
    [0, 0, 0], [math.nan, 0, 1],
])  # fmt: skip
REGIONS = [
    ("C.real", NUMBERS), ("C.positive", NUMBERS), ("C.nonnegative", NUMBERS),
    ("C.unit_interval", NUMBERS), ("C.boolean", NUMBERS), ("C.nonnegative_integer", NUMBERS),
    ("C.positive_integer", NUMBERS), ("C.greater_than(0.5)", NUMBERS),
    ("C.greater_than_eq(0.5)", NUMBERS), ("C.less_than(1.)", NUMBERS),
    ("C.interval(-1, 1)", NUMBERS), ("C.half_open_interval(-1, 1)", NUMBERS),
    ("C.integer_interval(0, 2)", NUMBERS), ("C.real_vector", VECTORS), ("C.simplex", VECTORS),
    ("C.one_hot", VECTORS), ("C.multinomial(3)", VECTORS),
    ("C.independent(C.positive, 1)", VECTORS),
    ("C.independent(C.boolean, 0)", VECTORS), ("C.lower_triangular", MATRICES),
    ("C.lower_cholesky", MATRICES), ("C.corr_cholesky", MATRICES), ("C.square", MATRICES),
    ("C.square", VECTORS), ("C.symmetric", MATRICES[:2]), ("C.symmetric", MATRICES[4:5]),
    ("C.positive_definite", MATRICES[[0, 1, 3, 5, 6]]),
    ("C.positive_semidefinite", MATRICES[[0, 1, 3, 5, 6]]),
    ("C.cat([C.positive, C.real], -1, [1, 2])", VECTORS),
    ("C.stack([C.positive, C.real, C.boolean], -1)", VECTORS),
    ("C.MixtureSameFamilyConstraint(C.positive)", NUMBERS),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), REGIONS)
def test_constraints_check_as_those_of_torch(text, value):
    ours, theirs = named(dg, text), named(torch, text)
    np.testing.assert_array_equal(
        ours.check(dg.tensor(value)).numpy(), theirs.check(torch.tensor(value)).numpy()
    )
    assert (ours.event_dim, ours.is_discrete) == (theirs.event_dim, theirs.is_discrete)
    if "multinomial" not in text and "Mixture" not in text and "cat" not in text:
        assert repr(ours).split("(")[0] == repr(theirs).split("(")[0]


def test_dependent_constraints_know_what_they_are_told():
    assert constraints.is_dependent(constraints.dependent)
    assert constraints.is_dependent(dg.distributions.Uniform.support)
    assert not constraints.is_dependent(constraints.real)
    known = constraints.dependent(is_discrete=True)(event_dim=2)
    assert known.is_discrete and known.event_dim == 2
    with pytest.raises(NotImplementedError, match="event_dim"):
        _ = constraints.dependent.event_dim
    with pytest.raises(ValueError, match="dependent"):
        known.check(dg.zeros(2))
    with pytest.raises(ValueError, match=r"value\.dim"):
        constraints.independent(constraints.real, 2).check(dg.zeros(2))


# ---------------------------------------------------------------------- transforms
MAPS = [
    ("T.ExpTransform()", X), ("T.PowerTransform(t(2.))", POSITIVE),
    ("T.PowerTransform(t([-1., 2., 0.5, 3.]))", POSITIVE), ("T.SigmoidTransform()", X),
    ("T.SoftplusTransform()", X), ("T.TanhTransform()", X), ("T.AbsTransform()", POSITIVE),
    ("T.AffineTransform(1., -2.)", X), ("T.AffineTransform(t([1., 2., 3., 4.]), t(0.5))", X),
    ("T.AffineTransform(0., 3., event_dim=1)", X), ("T.SoftmaxTransform()", X),
    ("T.StickBreakingTransform()", X), ("T.LowerCholeskyTransform()", MATRICES[:3]),
    ("T.PositiveDefiniteTransform()", MATRICES[:3]),
    ("T.CorrCholeskyTransform()", RNG.standard_normal((2, 6))),
    ("T.ReshapeTransform((4,), (2, 2))", X), ("T.identity_transform", X),
    ("T.ComposeTransform([T.AffineTransform(1., 2.), T.ExpTransform()])", X),
    ("T.ComposeTransform([T.AffineTransform(1., 2.), T.StickBreakingTransform()])", X),
    ("T.IndependentTransform(T.ExpTransform(), 1)", X),
    ("T.CatTransform([T.ExpTransform(), T.AffineTransform(1., 3.)], -1, [1, 3])", X),
    ("T.CatTransform([T.ExpTransform(), T.AffineTransform(1., 3.)], 0, [1, 1])", X),
    ("T.StackTransform([T.ExpTransform(), T.AffineTransform(1., 3.)], 0)", X),
    ("T.CumulativeDistributionTransform(D.Normal(t(0.), t(2.)))", X),
    ("T.ExpTransform().inv", POSITIVE), ("T.AffineTransform(1., 2.).inv", X),
    ("T.ComposeTransform([T.AffineTransform(1., 2.), T.TanhTransform()]).inv", X / 4),
]  # fmt: skip
WITHOUT_VOLUME = ("Softmax", "LowerCholesky", "PositiveDefinite", "Abs")


@pytest.mark.parametrize("cache", [0, 1])
@pytest.mark.parametrize(("text", "value"), MAPS, ids=[m for m, _ in MAPS])
def test_transforms_are_those_of_torch(text, value, cache):
    found = []
    for library in (dg, torch):
        t = named(library, text).with_cache(cache)
        x = library.tensor(value, requires_grad=True)
        y = t(x)
        parts = [y, t.inv(y.detach() + 0)]
        if not any(word in text for word in WITHOUT_VOLUME):
            parts.append(t.log_abs_det_jacobian(x, y))
        slope = library.autograd.grad(sum((p * p).sum() for p in parts), x)[0]
        shapes = [tuple(t.forward_shape(x.shape)), tuple(t.inverse_shape(y.shape))]
        kinds = [t.bijective, t.domain.event_dim, t.codomain.event_dim]
        found.append(([p.detach().numpy() for p in (*parts, slope)], shapes, kinds))
    (ours, *our_facts), (theirs, *their_facts) = found
    assert our_facts == their_facts
    for got, want in zip(ours, theirs, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, 1e-8, 1e-10)


@pytest.mark.parametrize("text", [m for m, _ in MAPS if "Abs" not in m and "Softmax" not in m])
def test_inverses_lead_back_and_the_volume_changes_are_those_of_the_jacobian(text):
    value = dict(MAPS)[text]
    t, x = named(dg, text), dg.tensor(value[:1])
    if "[1, 1]" in text or "StackTransform" in text:
        x = dg.tensor(value)
    y = t(x)
    np.testing.assert_allclose(t.inv(y), x, 1e-6, 1e-8)
    np.testing.assert_allclose(t.inv.inv(x), y)
    if x.shape == y.shape and t.domain.event_dim < 2 and t.bijective:
        slopes = dg.func.jacrev(t)(x).reshape(x.numel(), x.numel())
        change = t.log_abs_det_jacobian(x, y)
        np.testing.assert_allclose(change.sum(), dg.linalg.slogdet(slopes)[1], 1e-6, 1e-9)


def test_caches_give_back_the_same_tensor():
    t, x = transforms.ExpTransform(cache_size=1), dg.tensor(X)
    y = t(x)
    assert t.inv(y) is x and t(x) is y
    assert transforms.ExpTransform().inv(y) is not x
    with pytest.raises(ValueError, match="cache_size"):
        transforms.ExpTransform(cache_size=2)


def test_transforms_compare_by_class_and_parameters():
    assert transforms.ExpTransform() == transforms.ExpTransform()
    assert transforms.ExpTransform() != transforms.TanhTransform()
    assert transforms.AffineTransform(1, 2) == transforms.AffineTransform(1, 2)
    assert transforms.AffineTransform(1, 2) != transforms.AffineTransform(1, 3)
    assert transforms.ExpTransform().inv == transforms.ExpTransform().inv
    assert hash(transforms.ExpTransform()) == hash(transforms.ExpTransform())
    assert repr(transforms.ExpTransform().inv) == "_InverseTransform(ExpTransform())"


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="numbers of elements"):
        transforms.ReshapeTransform((3,), (2,))
    with pytest.raises(ValueError, match="Shape mismatch"):
        transforms.ReshapeTransform((4,), (2, 2)).forward_shape((5,))
    with pytest.raises(ValueError, match="Too few"):
        transforms.IndependentTransform(transforms.ExpTransform(), 1)(dg.tensor(1.0))
    with pytest.raises(ValueError, match="lower-diagonal"):
        transforms.CorrCholeskyTransform().forward_shape((5,))
    with pytest.raises(AssertionError, match="lengths"):
        transforms.CatTransform([transforms.ExpTransform()], 0, [1, 2])


# ---------------------------------------------------------------------- registries
@pytest.mark.parametrize("registry", ["biject_to", "transform_to"])
@pytest.mark.parametrize("text", [
    "C.real", "C.positive", "C.nonnegative", "C.greater_than(2.)", "C.less_than(1.)",
    "C.unit_interval", "C.interval(-1., 3.)", "C.half_open_interval(-1., 3.)", "C.simplex",
    "C.real_vector", "C.independent(C.positive, 1)", "C.corr_cholesky",
    "C.cat([C.positive, C.real], -1, [1, 5])", "C.lower_cholesky", "C.positive_definite",
    "C.stack([C.positive, C.real], 0)",
])  # fmt: skip
def test_registries_lead_to_the_constraint_as_in_torch(registry, text):
    value = RNG.standard_normal((2, 6, 6) if text.endswith(("cholesky", "definite")) else (2, 6))
    if text == "C.corr_cholesky":
        value = value[:, 0]
    try:
        want = getattr(torch.distributions, registry)(named(torch, text))(torch.tensor(value))
    except NotImplementedError:
        with pytest.raises(NotImplementedError, match="Cannot transform"):
            getattr(dg.distributions, registry)(named(dg, text))
        return
    constraint = named(dg, text)
    got = getattr(dg.distributions, registry)(constraint)(dg.tensor(value))
    np.testing.assert_allclose(got, want.numpy(), 1e-9, 1e-12)
    assert bool(constraint.check(got).all())


def test_users_register_their_own_constraints():
    class Even(constraints.Constraint):
        pass

    biject_to.register(Even, lambda c: transforms.ExpTransform())
    assert isinstance(biject_to(Even()), transforms.ExpTransform)
    with pytest.raises(TypeError, match="Constraint"):
        transform_to.register(3, lambda c: transforms.ExpTransform())


# ---------------------------------------------------------------------- made of distributions
@pytest.mark.parametrize("text", [
    "D.TransformedDistribution(D.Normal(t([0., 1.]), t([1., 2.])), [T.SigmoidTransform()])",
    "D.TransformedDistribution(D.Normal(t([0., 1.]), t([1., 2.])), T.AffineTransform(1., -2.))",
    "D.TransformedDistribution(D.Normal(t([0., 1.]), t(1.)), [T.AffineTransform(t([[1.], [2.]]), "
    "3.), T.SigmoidTransform()])",
    "D.Independent(D.Laplace(t([[0.3, 0.2]]), t(1.)), 1)",
    "D.MixtureSameFamily(D.Categorical(t([[0.2, 0.8]])), D.Gamma(t([[1., 2.]]), t(1.)))",
    "D.MixtureSameFamily(D.Categorical(t([[0.2, 0.8]])), D.Normal(t([[0., 3.]]), t(1.)))",
    "D.MixtureSameFamily(D.Categorical(logits=t([0.2, 0.8])), D.Independent(D.Normal(t([[0., 3.], "
    "[1., 1.]]), t(1.)), 1))",
])  # fmt: skip
def test_composed_distributions_are_those_of_torch(text):
    results = []
    for library in (dg, torch):
        made = named(library, text)
        x = library.tensor([[0.3, 0.6]], dtype=library.float64)
        facts = [made.log_prob(x)]
        for what in ("mean", "variance", "stddev"):
            if "Transformed" not in text:
                facts.append(getattr(made, what))
        if "Independent" not in text:
            facts.append(made.cdf(x))
        library.manual_seed(1)
        facts += [made.sample((4,)), made.expand((3, *made.batch_shape)).sample((2,))]
        results.append([tuple(made.batch_shape), tuple(made.event_shape), *facts])
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, 1e-9, 1e-12)


def test_the_weights_of_a_mixture_broadcast():
    D = dg.distributions
    mixture = D.MixtureSameFamily(D.Categorical(dg.ones(2)), D.Normal(dg.zeros(3, 2), 1.0))
    assert mixture.sample((4,)).shape == mixture.log_prob(dg.zeros(4, 3)).shape == (4, 3)


def test_mixtures_of_what_does_not_fit_are_refused():
    D = dg.distributions
    with pytest.raises(ValueError, match="Categorical"):
        D.MixtureSameFamily(D.Normal(0.0, 1.0), D.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="does not equal"):
        D.MixtureSameFamily(D.Categorical(dg.ones(3)), D.Normal(dg.zeros(2), 1.0))
    with pytest.raises(ValueError, match="reinterpreted_batch_ndims"):
        D.Independent(D.Normal(0.0, 1.0), 1)
    with pytest.raises(ValueError, match="Transform or list"):
        D.TransformedDistribution(D.Normal(0.0, 1.0), 3)


# ---------------------------------------------------------------------- the base class
def test_validation_can_be_switched_off():
    D = dg.distributions
    with pytest.raises(ValueError, match=r"GreaterThan\(lower_bound=0.0\)"):
        D.Normal(0.0, -1.0)
    D.Normal(0.0, -1.0, validate_args=False)
    D.Distribution.set_default_validate_args(False)
    try:
        D.Normal(0.0, -1.0)
    finally:
        D.Distribution.set_default_validate_args(True)
    with pytest.raises(ValueError, match="must be a Tensor"):
        D.Normal(0.0, 1.0).log_prob(3.0)
    with pytest.raises(ValueError, match="set_default_validate_args"):
        D.Distribution.set_default_validate_args("yes")
    with pytest.raises(ValueError, match="Number or Tensor"):
        D.Normal("a", 1.0)


@pytest.mark.parametrize("name", ["Bernoulli", "Categorical", "Geometric", "Multinomial"])
def test_probabilities_or_logits_but_not_both(name):
    kind = getattr(dg.distributions, name)
    with pytest.raises(ValueError, match="but not both"):
        kind()
    with pytest.raises(ValueError, match="but not both"):
        kind(probs=dg.ones(2) / 2, logits=dg.ones(2))


def test_arguments_of_wrong_shapes_are_refused():
    D = dg.distributions
    with pytest.raises(ValueError, match="at least one-dimensional"):
        D.Categorical(dg.tensor(0.5))
    with pytest.raises(ValueError, match="Exactly one"):
        D.MultivariateNormal(dg.zeros(2))
    with pytest.raises(ValueError, match="two-dimensional"):
        D.MultivariateNormal(dg.zeros(2), dg.ones(2))
    with pytest.raises(ValueError, match="2 x m"):
        D.LowRankMultivariateNormal(dg.zeros(2), dg.ones(3, 1), dg.ones(2))
    with pytest.raises(ValueError, match="dim=1"):
        D.LKJCholesky(1)
    with pytest.raises(ValueError, match="greater than ndim - 1"):
        D.Wishart(dg.tensor(1.0), dg.eye(3))
    with pytest.raises(NotImplementedError, match="inhomogeneous"):
        D.Multinomial(dg.tensor([2, 3]), dg.ones(2, 3))


def test_users_write_their_own_distributions():
    class Point(dg.distributions.Distribution):
        arg_constraints = {"at": constraints.real}  # noqa: RUF012

        def __init__(self, at, validate_args=None):
            self.at = at
            super().__init__(at.shape, validate_args=validate_args)

        def rsample(self, sample_shape=()):
            return self.at.expand(self._extended_shape(sample_shape))

    point = Point(dg.tensor([1.0, 2.0]))
    assert point.sample((3,)).shape == (3, 2)
    assert point.expand((4, 2)).sample().shape == (4, 2)
    with pytest.raises(NotImplementedError, match=r"Point\.entropy"):
        point.entropy()
    with pytest.warns(UserWarning, match="support"):
        point._validate_sample(dg.zeros(2))
    with pytest.warns(FutureWarning, match="sample_n"):
        assert point.sample_n(2).shape == (2, 2)


def test_distributions_are_pickled():
    gamma = dg.distributions.Gamma(dg.tensor([1.0, 2.0]), 1.0)
    again = pickle.loads(pickle.dumps(gamma))
    np.testing.assert_array_equal(again.concentration, gamma.concentration)


def test_the_mode_of_kumaraswamy_is_where_its_density_is_largest():
    made = dg.distributions.Kumaraswamy(dg.tensor([2.0, 0.5]).double(), 3.0)
    grid = dg.linspace(0.001, 0.999, 999, dtype=dg.float64)
    best = grid[made.log_prob(grid.unsqueeze(-1))[:, 0].argmax()]
    assert abs(made.mode[0] - best) < 1e-3
    assert bool(made.mode[1].isnan())


def test_triangles_and_vectors():
    for diag in (-1, 0, 1):
        matrix = RNG.standard_normal((2, 4, 4))
        utils, other = dg.distributions.utils, torch.distributions.utils
        got = utils.tril_matrix_to_vec(dg.tensor(matrix), diag)
        np.testing.assert_array_equal(got, other.tril_matrix_to_vec(torch.tensor(matrix), diag))
        np.testing.assert_array_equal(utils.vec_to_tril_matrix(got, diag), np.tril(matrix, diag))
    with pytest.raises(ValueError, match="cannot be expressed"):
        dg.distributions.utils.vec_to_tril_matrix(dg.zeros(4))
    with pytest.raises(ValueError, match="outside"):
        dg.distributions.utils.tril_matrix_to_vec(dg.zeros(2, 2), 3)
