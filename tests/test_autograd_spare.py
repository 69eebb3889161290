"""Gradients in the place of saved memory: only where nobody else can see that memory."""

import tracemalloc
import weakref

import numpy as np
import pytest

import distgrad as dg
from distgrad.autograd import engine, graph, holders
from distgrad.autograd.spare import spare
from distgrad.backend.device import array_namespace
from distgrad.nn import functional as F
from distgrad.testing import standin
from distgrad.testing.standin import emulator

ROWS, CLASSES = 6, 16
VALUES = np.random.default_rng(0).standard_normal((ROWS, CLASSES)).astype("f4")
LABELS = np.arange(ROWS) % CLASSES


@pytest.fixture(autouse=True)
def _counted(monkeypatch):
    monkeypatch.setattr(holders, "WORTH", 0)


@pytest.fixture(params=["cpu", "cuda"])
def place(request):
    if request.param == "cpu":
        yield "cpu"
        return
    if not emulator.compiler():
        pytest.skip("g++ is not installed")
    with standin.installed() as ledger:
        yield "cuda"
        assert not ledger.hazards and not ledger.refused


class Case:
    """Logits that only a graph holds, until somebody else takes hold of them."""

    def __init__(self, place, *, dims=2):
        self.place, self.given = place, dg.tensor(VALUES, device=place).requires_grad_()
        self.logits = self.given * 2.0
        if dims == 3:
            self.logits = self.logits.reshape(2, ROWS // 2, CLASSES)
        self.address, self.seen = self.logits.data_ptr(), []
        self.logits.register_hook(lambda g: self.seen.append(g.data_ptr()))

    def loss(self, **options):
        labels = dg.tensor(LABELS, device=self.place)
        return F.cross_entropy(self.logits.reshape(ROWS, CLASSES), labels, **options)

    @property
    def overwritten(self):
        return self.seen == [self.address]


def expected(**options):
    given = dg.tensor(VALUES).requires_grad_()
    logits = given * 2.0
    F.cross_entropy(logits, dg.tensor(LABELS), **options).backward()
    return given.grad.numpy(), logits.detach().numpy()


def check(case):
    """The gradient is right."""
    want = expected()[0]
    np.testing.assert_allclose(case.given.grad.cpu().numpy(), want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dims", [2, 3])
def test_logits_that_nobody_holds_become_their_gradient(place, dims):
    case = Case(place, dims=dims)
    loss = case.loss()
    case.logits = None
    loss.backward()
    check(case)
    assert case.overwritten


def test_nobody_counts_for_small_arrays(monkeypatch):
    for most in (VALUES.nbytes, VALUES.nbytes + 1):
        monkeypatch.setattr(holders, "WORTH", most)
        case = Case("cpu")
        loss = case.loss()
        case.logits = None
        loss.backward()
        assert case.overwritten is (most == VALUES.nbytes)


OPTIONS = [
    {"reduction": "sum"}, {"label_smoothing": 0.1}, {"ignore_index": 2}, {"weight": True},
    {"weight": True, "label_smoothing": 0.2, "ignore_index": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_place_changes_no_bits(place, options):
    found = []
    for keep in (True, False):
        case = Case(place)
        if "weight" in options:
            options = {**options, "weight": dg.linspace(0.5, 2, CLASSES).to(place)}
        loss = case.loss(**options)
        held = case.logits if keep else None
        case.logits = None
        loss.backward()
        assert case.overwritten is not keep and (held is None or held.shape)
        found.append(case.given.grad.cpu().numpy())
    np.testing.assert_array_equal(*found)


def restrided(array, shape, strides):
    return array_namespace(array).restrided(array, shape, strides)


def as_it_is(logits):
    return logits


HOLDERS = {  # what is held of the logits, and which numbers it has
    "variable": (as_it_is, as_it_is),
    "detached": (lambda t: t.detach(), as_it_is),
    "data": (lambda t: t.data, as_it_is),
    "view": (lambda t: t.view(-1), lambda a: a.reshape(-1)),
    "view of a view": (lambda t: t.t()[1:], lambda a: a.T[1:]),
    "detached view": (lambda t: t.detach()[:2], lambda a: a[:2]),
    "strided": (lambda t: t.detach().as_strided((4,), (2,)), lambda a: a.reshape(-1)[:8:2]),
    "array": (lambda t: t.array, as_it_is),
    "memory": (lambda t: restrided(t.array, (4,), (8,)), lambda a: a.reshape(-1)[:8:2]),
    "view of the array": (lambda t: t.array.reshape(-1)[3:], lambda a: a.reshape(-1)[3:]),
    "weak reference": (weakref.ref, as_it_is),
    "cycle": (lambda t: [t], as_it_is),
}


def numbers(held):
    """Return what one sees who holds something of the logits."""
    if isinstance(held, weakref.ref):
        held = held()
    if isinstance(held, list):
        held = held[0]
    if isinstance(held, dg.Tensor):
        held = held.detach().cpu().array
    return held.get() if hasattr(held, "get") else held


@pytest.mark.parametrize("name", HOLDERS)
def test_logits_that_somebody_holds_stay(place, name):
    case, (take, seen) = Case(place), HOLDERS[name]
    loss = case.loss()
    held = take(case.logits)
    if isinstance(held, list):
        held.append(held)  # only the collector frees it
    case.logits = None
    loss.backward()
    check(case)
    assert not case.overwritten and case.seen
    if name != "weak reference" or held() is not None:
        np.testing.assert_array_equal(numbers(held), seen(expected()[1]))


def test_memory_of_numpy_arrays_stays():
    for export in (
        lambda t: t.detach().numpy(),
        lambda t: memoryview(t.detach().numpy()),
        lambda t: np.from_dlpack(t.detach()),
        lambda t: t.detach().numpy()[:, ::2],
    ):
        case = Case("cpu")
        loss, held = case.loss(), export(case.logits)
        case.logits = None
        loss.backward()
        logits = expected()[1]
        np.testing.assert_array_equal(np.asarray(held), logits[:, :: CLASSES // held.shape[1]])
        assert not case.overwritten and case.seen


def test_a_second_backward_finds_the_logits(place):
    case = Case(place)
    loss = case.loss()
    case.logits = None
    loss.backward(retain_graph=True)
    assert not case.overwritten
    first, case.given.grad, case.seen = case.given.grad, None, []
    loss.backward()
    assert case.overwritten
    np.testing.assert_array_equal(case.given.grad.cpu().numpy(), first.cpu().numpy())
    check(case)


def test_gradients_of_gradients_find_the_logits(place):
    case = Case(place)
    loss = case.loss()
    case.logits = None
    (grad,) = dg.autograd.grad(loss, case.given, create_graph=True)
    assert not case.overwritten
    (second,) = dg.autograd.grad(grad.square().sum(), case.given)
    given = dg.tensor(VALUES.astype("f8")).requires_grad_()
    (want,) = dg.autograd.grad(
        F.cross_entropy(given * 2.0, dg.tensor(LABELS)), given, create_graph=True
    )
    (want,) = dg.autograd.grad(want.square().sum(), given)
    np.testing.assert_allclose(second.cpu().numpy(), want.numpy(), rtol=1e-4, atol=1e-6)


def test_other_nodes_find_the_logits(place):
    given = dg.tensor(VALUES, device=place).requires_grad_()
    logits = given.clone()  # which keeps nothing, so two backwards may pass
    loss = F.cross_entropy(logits, dg.tensor(LABELS, device=place))
    other = logits.sin().sum()
    logits = None
    loss.backward()
    given.grad = None
    other.backward()
    want = np.cos(VALUES)
    np.testing.assert_allclose(given.grad.cpu().numpy(), want, rtol=1e-5, atol=1e-6)


def test_the_node_that_made_the_logits_finds_them(place):
    given = dg.tensor(VALUES, device=place).requires_grad_()
    F.cross_entropy(given.exp(), dg.tensor(LABELS, device=place)).backward()  # exp saves its output
    want = dg.tensor(VALUES).requires_grad_()
    logits = want.exp()
    F.cross_entropy(logits, dg.tensor(LABELS)).backward()
    np.testing.assert_allclose(given.grad.cpu().numpy(), want.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_leaves_stay(place):
    for make in (lambda t: t, lambda t: t.view(-1).view(ROWS, CLASSES), dg.nn.Parameter):
        leaf = dg.tensor(VALUES, device=place).requires_grad_()
        logits = make(leaf)
        loss = F.cross_entropy(logits, dg.tensor(LABELS, device=place))
        if logits._node is not None:
            logits = None
        loss.backward()
        np.testing.assert_array_equal(leaf.detach().cpu().numpy(), VALUES)


def test_hooks_on_saved_tensors_keep_what_they_get(place):
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return len(kept) - 1

    case = Case(place)
    with graph.saved_tensors_hooks(pack, kept.__getitem__):
        loss = case.loss()
    case.logits = None
    before = [t.detach().cpu().numpy().copy() for t in kept]
    loss.backward()
    check(case)
    assert not case.overwritten
    for tensor, values in zip(kept, before, strict=True):
        np.testing.assert_array_equal(tensor.detach().cpu().numpy(), values)


def test_anomaly_mode_keeps_the_logits(place):
    case = Case(place)
    with pytest.warns(UserWarning, match="Anomaly"), dg.autograd.detect_anomaly():
        loss = case.loss()
        case.logits = None
        loss.backward()
    check(case)
    assert not case.overwritten


def test_hooks_and_gradients_of_the_logits_are_right(place):
    case, got = Case(place), []
    loss = case.loss()
    case.logits.retain_grad()
    case.logits.register_hook(lambda g: got.append(g.cpu().numpy().copy()))
    case.logits = None
    loss.backward()
    check(case)
    np.testing.assert_allclose(2 * got[0], case.given.grad.cpu().numpy(), rtol=1e-6)


def test_reusing_the_graph_is_still_refused(place):
    case = Case(place)
    loss = case.loss()
    case.logits = None
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_the_gradient_may_be_added_to_and_shared(place):
    given = dg.tensor(VALUES, device=place).requires_grad_()
    labels = dg.tensor(LABELS, device=place)
    base = given * 2.0
    parts = [F.cross_entropy(base.clone(), labels) for _ in range(3)]
    sum(parts).backward()
    np.testing.assert_allclose(given.grad.cpu().numpy(), 3 * expected()[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(base.detach().cpu().numpy(), 2 * VALUES)


def test_a_walk_that_is_not_ours_gets_no_memory():
    case = Case("cpu")
    node = case.loss().grad_fn
    assert engine._state.walk is None and not spare(node, 0)


EXPANDED = {
    "all": lambda t: t.expand(ROWS, CLASSES),  # NumPy lets nobody write there
    "rows": lambda t: t[:1].expand(ROWS, CLASSES),
    "classes": lambda t: t[:, :1].expand(ROWS, CLASSES),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", EXPANDED)
def test_rows_that_share_numbers_are_left(place, name, fused, monkeypatch):
    if place == "cuda" and not fused:
        kernels = array_namespace(dg.ones(1, device=place).array).kernels
        for kernel in ("cross_entropy", "d_cross_entropy"):
            monkeypatch.delitem(kernels, kernel)
    found = []
    for keep in (True, False):
        given = dg.tensor(VALUES, device=place).requires_grad_()
        logits = EXPANDED[name](given.sin())
        held = logits if keep else None
        loss = F.cross_entropy(logits, dg.tensor(LABELS, device=place))
        logits = None
        loss.backward()
        found.append(given.grad.cpu().numpy())
        assert (held is not None) is keep
    np.testing.assert_array_equal(*found)


def test_backward_takes_no_second_array_of_the_logits_on_the_host():
    given = dg.ones(256, 64, requires_grad=True)
    weight = dg.ones(64, 4096)
    labels = dg.zeros(256, dtype=dg.int64)
    size, peaks = 256 * 4096 * 4, {}
    for keep in (True, False):
        logits = given @ weight
        loss = F.cross_entropy(logits, labels)
        held = logits if keep else None
        logits = None
        tracemalloc.start()
        loss.backward()
        peaks[keep] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (held is not None) is keep
    assert size <= peaks[True] < 1.5 * size and peaks[False] < 0.5 * size


@pytest.mark.skipif(not emulator.compiler(), reason="g++ is not installed")
def test_backward_takes_no_second_array_of_the_logits_on_a_gpu():
    rows, classes = 16, 2048
    with standin.installed():
        given = dg.ones(rows, 8, device="cuda", requires_grad=True)
        weight = dg.ones(8, classes, device="cuda")
        labels = dg.zeros(rows, dtype=dg.int64, device="cuda")
        peaks = {}
        for keep in (True, True, False):  # the first one makes what lasts
            given.grad = None
            logits = given @ weight
            loss = F.cross_entropy(logits, labels)
            held = logits if keep else None
            logits = None
            dg.cuda.reset_peak_memory_stats()
            base = dg.cuda.memory_allocated()
            loss.backward()
            peaks[keep] = dg.cuda.max_memory_allocated() - base
            assert (held is not None) is keep
            del loss
    size = rows * classes * 4
    assert size <= peaks[True] < 1.5 * size and peaks[False] < 0.25 * size


@pytest.mark.skipif(not emulator.compiler(), reason="g++ is not installed")
def test_a_captured_backward_overwrites_only_what_its_own_capture_makes():
    with standin.installed():
        weight = dg.tensor(VALUES, device="cuda").requires_grad_()
        labels = dg.tensor(LABELS, device="cuda")

        def forward(x):
            return F.cross_entropy(x * weight, labels)

        x = dg.tensor(VALUES, device="cuda").requires_grad_()
        graphed = dg.cuda.make_graphed_callables(forward, (x,))
        loss = graphed(x)
        loss.backward(retain_graph=True)
        first, x.grad = x.grad.clone(), None
        loss.backward()  # the same backward graph, after one forward graph
        np.testing.assert_array_equal(first.cpu().numpy(), x.grad.cpu().numpy())
        assert first.abs().sum().item() > 0
