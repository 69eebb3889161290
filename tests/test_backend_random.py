"""Random numbers: reproducible, of the right distribution, and PyTorch's own streams."""

from __future__ import annotations

import copy
import pickle
import threading
import tracemalloc

import numpy as np
import pytest

from distgrad.backend import dtype as dt
from distgrad.backend import random
from distgrad.backend.random import Generator
from distgrad.errors import ArgumentError, ArgumentTypeError, DtypeError

F32, F64, I64 = np.dtype("float32"), np.dtype("float64"), np.dtype("int64")
FLOATS = [dt.float16, dt.bfloat16, dt.float32, dt.float64]
SIZES = [*range(41), 625, 1000]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


class Pair:
    """The same draws from PyTorch's generator and ours, compared with the states after each."""

    def __init__(self, torch, seed):
        self.torch = torch
        self.ours, self.theirs = seeded(seed), torch.Generator().manual_seed(seed)

    def empty(self, n, d):
        return self.torch.empty(n, dtype=getattr(self.torch, d.name))

    def same(self, ours, theirs):
        if theirs.dtype is self.torch.bfloat16:
            ours, theirs = ours.astype(F32), theirs.float()
        np.testing.assert_array_equal(ours, theirs.numpy())
        np.testing.assert_array_equal(self.ours.get_state(), self.theirs.get_state().numpy())


@pytest.fixture(params=[0, 2**40 + 7])
def pair(request):
    return Pair(pytest.importorskip("torch"), request.param)


# Values that PyTorch 2.13 printed, so that the streams stay right where it is not installed.
@pytest.mark.parametrize(
    ("draw", "values"),
    [
        (
            lambda g: g.uniform((3,), F32),
            [0.49625658988952637, 0.7682217955589294, 0.08847743272781],
        ),
        (lambda g: g.normal((16,), F32)[:2], [-1.1258398294448853, -1.152360200881958]),
        (
            lambda g: g.normal((3,), F64),
            [1.5409961082440433, -0.2934289057609464, -2.1787893820745],
        ),
        (lambda g: g.exponential((2,), F64), [3.508326186707642, 1.2303847641796768]),
        (lambda g: g.permutation(8), [4, 0, 7, 3, 2, 5, 1, 6]),
        (lambda g: g.integers((6,), I64, 0, 10), [4, 9, 3, 0, 3, 9]),
        (lambda g: g.bernoulli((8,), 0.5), [0, 0, 1, 0, 0, 0, 1, 1]),
    ],
)
def test_streams_begin_with_pytorchs_known_values(draw, values):
    np.testing.assert_allclose(draw(seeded(0)).astype(F64), values, rtol=1e-12)


@pytest.mark.torch
@pytest.mark.parametrize("d", FLOATS, ids=lambda d: d.name)
def test_floats_are_pytorchs_bit_for_bit(pair, d):
    for n in SIZES:
        x = pair.empty(n, d)
        ours, theirs, kind = pair.ours, {"generator": pair.theirs}, d.numpy
        pair.same(ours.uniform((n,), kind), x.uniform_(**theirs))
        pair.same(ours.uniform((n,), kind, -0.3, 0.7), x.uniform_(-0.3, 0.7, **theirs))
        pair.same(ours.normal((n,), kind), x.normal_(**theirs))
        pair.same(ours.normal((n,), kind, 0.3, 1.7), x.normal_(0.3, 1.7, **theirs))
        pair.same(ours.exponential((n,), kind, 1.5), x.exponential_(1.5, **theirs))
        pair.same(ours.integers((n,), kind, 0, 100), x.random_(0, 100, **theirs))
        pair.same(ours.integers_of((n,), kind), x.random_(**theirs))
    x = pair.empty(5000, d).exponential_(generator=pair.theirs)
    pair.same(pair.ours.exponential((5000,), d.numpy), x)


@pytest.mark.torch
@pytest.mark.parametrize("d", [dt.uint8, dt.int8, dt.int16, dt.int32, dt.int64, dt.bool_])
def test_integers_are_pytorchs_bit_for_bit(pair, d):
    low, high = (0, 2) if d is dt.bool_ else (0, 100) if d is dt.uint8 else (-7, 100)
    for n in (0, 1, 7, 700):
        x = pair.empty(n, d)
        pair.same(
            pair.ours.integers((n,), d.numpy, low, high),
            x.random_(low, high, generator=pair.theirs),
        )
        pair.same(pair.ours.integers_of((n,), d.numpy), x.random_(generator=pair.theirs))


@pytest.mark.torch
def test_wide_ranges_of_integers_are_pytorchs(pair):
    for low, high in [(0, 2**28 - 1), (0, 2**28), (-(2**40), 2**41), (-(2**63), 2**63 - 1)]:
        x = pair.empty(20, dt.int64).random_(low, high, generator=pair.theirs)
        pair.same(pair.ours.integers((20,), I64, low, high), x)
    x = pair.empty(20, dt.int64).random_(-(2**63), None, generator=pair.theirs)
    pair.same(pair.ours.integers((20,), I64, -(2**63), 2**63), x)


@pytest.mark.torch
def test_permutations_are_pytorchs(pair):
    for n in (*SIZES, 5000):
        pair.same(pair.ours.permutation(n), pair.torch.randperm(n, generator=pair.theirs))


@pytest.mark.torch
def test_bernoulli_by_a_tensor_of_probabilities_is_pytorchs(pair):
    for d in FLOATS:
        p = pair.empty(50, d).uniform_(generator=pair.theirs)
        mine = pair.ours.uniform((50,), d.numpy)
        pair.same(
            pair.ours.bernoulli_of(mine), pair.torch.bernoulli(p, generator=pair.theirs).bool()
        )


@pytest.mark.torch
def test_bernoulli_by_a_number_is_pytorchs_but_on_intel(pair):
    before = pair.theirs.get_state()
    pair.empty(2, dt.float32).bernoulli_(0.5, generator=pair.theirs)
    drawn = pair.theirs.get_state()[16].item()
    if drawn != 4:
        pytest.skip("on Intel CPUs PyTorch draws these with MKL")
    pair.theirs.set_state(before)
    for p in (0.0, 0.1, 0.5, 1.0, 1e-17):
        x = pair.empty(300, dt.float32).bernoulli_(p, generator=pair.theirs)
        pair.same(pair.ours.bernoulli((300,), p), x.bool())


@pytest.mark.torch
def test_strided_arrays_are_filled_in_pytorchs_order(pair):
    out = np.empty((3, 20, 2), F32).transpose(2, 0, 1)
    x = pair.torch.empty(3, 20, 2).permute(2, 0, 1)
    random.fill(out, lambda shape: pair.ours.normal_pairs(shape, F32))
    pair.same(out, x.normal_(generator=pair.theirs))
    random.fill(out[:, 1:], lambda shape: pair.ours.uniform(shape, F32))
    x[:, 1:].uniform_(generator=pair.theirs)
    pair.same(out, x)


@pytest.mark.torch
def test_pytorch_continues_from_our_state_and_back(pair):
    pair.ours.normal((7,), F32)  # leaves a spare value
    pair.theirs.set_state(pair.torch.from_numpy(np.asarray(pair.ours.get_state())))
    pair.same(pair.ours.normal((9,), F32), pair.torch.randn(9, generator=pair.theirs))


@pytest.mark.parametrize("d", FLOATS, ids=lambda d: d.name)
def test_uniform_stays_below_the_upper_end(d):
    x = seeded().uniform((20000,), d.numpy, 1.0, 1.0 + 2 * dt.finfo(d).eps)
    assert set(x.astype(F64)) <= {1.0, 1.0 + dt.finfo(d).eps}


def test_distributions_have_their_moments():
    g, n = seeded(), 20000
    assert abs(g.uniform((n,), F32).mean() - 0.5) < 0.01
    x = g.normal((n,), F32, 2.0, 3.0)
    assert abs(x.mean() - 2) < 0.1
    assert abs(x.std() - 3) < 0.1
    assert abs(g.exponential((n,), F64, 2.0).mean() - 0.5) < 0.02
    assert abs(g.bernoulli((n,), 0.3).mean() - 0.3) < 0.02
    assert sorted(g.permutation(n).tolist()) == list(range(n))
    assert np.bincount(g.integers((n,), I64, 0, 4)).min() > 4700


def test_shapes_are_kept():
    g = seeded()
    assert g.normal((2, 3, 4), F32).shape == (2, 3, 4)
    assert g.uniform((), F32).shape == ()
    assert g.bernoulli((0, 3), 0.5).shape == (0, 3)
    assert g.permutation(0).shape == (0,)


def test_a_state_restores_the_stream_exactly():
    g = seeded(3)
    g.normal((5,), F32)  # an odd number: the state holds a spare value
    state = g.get_state()
    want = g.normal((4,), F64)
    for other in (Generator(), seeded(9)):
        other.set_state(bytes(state))
        np.testing.assert_array_equal(other.normal((4,), F64), want)
        assert other.initial_seed() == 3
    g.set_state(state.tolist())
    for twin in (pickle.loads(pickle.dumps(g)), copy.deepcopy(g), g.clone_state()):
        np.testing.assert_array_equal(twin.normal((4,), F64), want)


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (b"abc", ArgumentError),
        (np.zeros(5056, np.uint8), ArgumentError),
        (np.zeros(5056), ArgumentTypeError),
    ],
)
def test_bytes_that_are_no_state_leave_the_generator_as_it_was(state, error):
    g = seeded(1)
    before = g.get_state()
    with pytest.raises(error, match="get_state"):
        g.set_state(state)
    np.testing.assert_array_equal(g.get_state(), before)


def test_seeds_are_taken_as_in_pytorch():
    g = Generator()
    assert g.initial_seed() == 67280421310721
    assert g.manual_seed(-5).initial_seed() == 2**64 - 5
    np.testing.assert_array_equal(
        seeded(7).uniform((3,), F32), seeded(7 + 2**32).uniform((3,), F32)
    )
    assert g.seed() == g.initial_seed()
    with pytest.raises(ArgumentError, match="64 bits"):
        g.manual_seed(2**64)
    with pytest.raises(ArgumentTypeError, match="integer"):
        g.manual_seed("a")


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: g.uniform((2,), F32, 2.0, 1.0),
        lambda g: g.normal((2,), F32, 0.0, -1.0),
        lambda g: g.normal((20,), F32, 0.0, -1.0),
        lambda g: g.exponential((2,), F32, 0.0),
        lambda g: g.bernoulli((2,), 1.5),
        lambda g: g.bernoulli_of(np.array([0.5, -0.1])),
        lambda g: g.integers((2,), I64, 3, 3),
        lambda g: g.permutation(-1),
    ],
)
def test_impossible_parameters_are_refused(draw):
    with pytest.raises(ArgumentError):
        draw(seeded())


def test_real_samples_need_a_float_type():
    with pytest.raises(DtypeError, match="floating point"):
        seeded().normal((2,), I64)


def test_each_thread_can_use_its_own_generator():
    drawn = {}

    def rank(number: int) -> None:
        with random.use_generator(seeded(number)):
            barrier.wait()
            drawn[number] = random.current_generator().uniform((5,), F32)

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=rank, args=(n,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, values in drawn.items():
        np.testing.assert_array_equal(values, seeded(number).uniform((5,), F32))
    assert random.current_generator() is random.default_generator


def test_module_functions_act_on_the_current_generator():
    with random.use_generator(Generator()) as g:
        random.manual_seed(11)
        assert random.initial_seed() == g.initial_seed() == 11
        state = random.get_rng_state()
        want = g.uniform((3,), F32)
        random.set_rng_state(state)
        np.testing.assert_array_equal(g.uniform((3,), F32), want)
        assert random.seed() == g.initial_seed()


@pytest.mark.parametrize("dtype", [F32, F64])
def test_many_uniforms_are_those_of_two_calls(dtype):
    whole, halves = seeded(3), seeded(3)
    n, first = 2 * random._PART + 5, random._PART + 1
    drawn = [halves.uniform((size,), dtype, -1, 2) for size in (first, n - first)]
    assert (whole.uniform((n,), dtype, -1, 2) == np.concatenate(drawn)).all()
    assert (whole.get_state() == halves.get_state()).all()


def test_many_truth_values_are_those_of_two_calls():
    whole, halves = seeded(4), seeded(4)
    n, first = 2 * random._PART + 5, random._PART + 1
    drawn = [halves.bernoulli((size,), 0.3) for size in (first, n - first)]
    assert (whole.bernoulli((n,), 0.3) == np.concatenate(drawn)).all()


@pytest.mark.parametrize("draw", ["uniform", "normal", "bernoulli"])
def test_drawing_needs_little_memory_beside_the_result(draw):
    generator, size = seeded(), 1 << 21
    tracemalloc.start()
    if draw == "bernoulli":
        result = generator.bernoulli((size,), 0.5)
    else:
        result = getattr(generator, draw)((size,), F32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * result.nbytes + 40 * random._PART
