"""Captured CUDA graphs without a GPU: the stand-in records a capture's work and repeats it."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.backend.device import device
from distgrad.distributed import run_ranks
from distgrad.errors import CaptureError
from distgrad.testing import device_capture as checks
from distgrad.testing import standin
from distgrad.testing.standin import emulator
from distgrad.testing.standin.captures import CUDARuntimeError

PLACE = device("cuda:0")
pytestmark = pytest.mark.skipif(emulator.compiler() is None, reason="no g++ to compile kernels")


@pytest.fixture
def machine():
    """Return a machine whose captures break no rule."""
    with standin.installed(4) as ledger:
        yield ledger
        assert not ledger.hazards and not ledger.refused


@pytest.fixture
def free():
    """Return a machine whose captures may break rules."""
    with standin.installed() as ledger:
        yield ledger
        assert not ledger.hazards


# ---------------------------------------------------------------------- whole steps
@pytest.mark.parametrize(("model", "optimizer"), checks.TRAININGS)
def test_replayed_steps_have_the_bits_of_steps_that_run(machine, model, optimizer):
    eager = checks.trained(model, optimizer, PLACE, False)
    captured = checks.trained(model, optimizer, PLACE, True)
    assert machine.replays == checks.STEPS - 3
    for one, other in zip(eager, captured, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("check", checks.CHECKS)
def test_captures(machine, check):
    check(PLACE)


def test_graphs_have_pools_and_streams_take_part(machine, tmp_path):
    checks.check_graph(PLACE, tmp_path)


def test_a_scaler_leaves_steps_out_in_replays_too(machine):
    eager = checks.check_scaled(PLACE, rtol=0)
    assert machine.replays == 11
    host = checks.scaled(device("cpu"), False)
    np.testing.assert_allclose(eager[0], host[0], rtol=1e-5)
    assert eager[1] == host[1]


def test_a_step_is_launched_without_a_wait_or_an_upload(machine):
    training = checks.Training("text", "adamw", PLACE)
    step = dg.cuda.capture_step(training.step)
    x, y = training.batch()
    for _ in range(4):
        step(x, y)
    uploads = machine.uploads
    with standin.no_syncs():
        for _ in range(3):
            step(x, y)
    assert machine.uploads == uploads


def test_what_cannot_be_captured_is_named(free):
    checks.check_refusals(PLACE)


# ---------------------------------------------------------------------- ranks
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_captured_step_holds_the_all_reduce(machine, accumulate, uneven):
    eager = run_ranks(2, checks.parallel, 4, False, accumulate, uneven)
    assert run_ranks(2, checks.parallel, 4, True, accumulate, uneven) == eager
    assert machine.replays


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("rule", ["AdamW", "NAdam"])
@pytest.mark.parametrize("stage", [1, 2])
def test_a_captured_step_holds_a_shared_optimizer(machine, stage, rule, overlap):
    eager = run_ranks(3, checks.sharded, 3, False, stage, rule, overlap)
    assert run_ranks(3, checks.sharded, 3, True, stage, rule, overlap) == eager
    assert machine.replays


def test_ranks_that_share_a_gpu_are_refused(free):
    with pytest.raises(CaptureError, match=r"all_reduce\(bucket 0 .*; give each rank a GPU"):
        run_ranks(2, checks.parallel, 1, True, False, False)


@pytest.mark.parametrize("window", ["32", "0"])  # MiB; none is the way by the host
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_refused_capture_leaves_nothing_behind(free, monkeypatch, window, accumulate):
    monkeypatch.setenv("DISTGRAD_GPU_WINDOW", window)
    eager = run_ranks(2, checks.refused, 1, False, accumulate)
    tried = run_ranks(2, checks.refused, 1, True, accumulate)
    (first, second), (words, same) = zip(*eager, strict=True), zip(*tried, strict=True)
    assert same == second and not any(first)
    assert len(set(words)) == 1 and "give each rank a GPU of its own" in str(words[0])


def test_what_one_rank_cannot_capture_is_raised_on_all():
    with standin.installed(3) as ledger:
        words = run_ranks(3, checks.refused_by_one, 3)
        assert not ledger.hazards
    assert len(set(words)) == 1
    assert words[0].startswith("a captured step: rank 1 cannot: item() (device_capture.py:")


def test_memory_of_buckets_that_moved_is_not_given_out_while_it_is_used(free):
    """Two ranks of one GPU share its default stream, and step on another one."""
    for _ in range(3):
        run_ranks(2, checks.beside, 1)


# ---------------------------------------------------------------------- the stand-in itself
def _capture(body):
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    x = cupy.arange(4.0)
    stream.wait_event(cupy.cuda.get_current_stream().record())
    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc), stream:
        stream.begin_capture()
        try:
            body(cupy, stream, x)
        finally:
            graph = stream.end_capture()
    return x, graph


def _waits(cupy, stream, x):
    x.get()


def _null(cupy, stream, x):
    with cupy.cuda.Stream(non_blocking=False):
        x += 1


def _unjoined(cupy, stream, x):
    other = cupy.cuda.Stream(non_blocking=True)
    other.wait_event(stream.record())
    with other:
        x += 1


def _earlier(cupy, stream, x):
    event = cupy.cuda.Event()
    event.record(cupy.cuda.Stream(non_blocking=True))
    stream.wait_event(event)


def _asks(cupy, stream, x):
    x += 1
    assert stream.record().done


def _uploads(cupy, stream, x):
    x += cupy.asarray([1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (_waits, "Invalidated"),
        (_null, "Invalidated"),
        (_unjoined, "Unjoined"),
        (_earlier, "Invalidated"),
        (_asks, "CapturedEvent"),
        (_uploads, "Invalidated"),
    ],
)
def test_the_stand_in_has_cudas_rules(free, body, kind):
    with pytest.raises(CUDARuntimeError, match=kind):
        _capture(body)


def test_the_stand_in_computes_at_launches_only(free):
    def body(cupy, stream, x):
        x += 1

    x, graph = _capture(body)
    assert x.get().tolist() == [0, 1, 2, 3]
    graph.launch()
    graph.launch()
    assert x.get().tolist() == [2, 3, 4, 5]


def test_the_stand_in_sees_what_a_graph_has_lost():
    def body(cupy, stream, x):
        x += 1

    with standin.installed() as ledger:
        x, graph = _capture(body)
        del x
        with pytest.raises(standin.StreamHazard, match="freed since its capture"):
            graph.launch()
        assert ledger.hazards


def test_the_stand_in_refuses_the_default_pool_in_a_capture():
    with standin.installed():
        import cupy

        with cupy.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            with pytest.raises(standin.StreamHazard, match="default pool"):
                cupy.zeros(4)
            stream.end_capture()


def test_cupys_matrix_products_are_refused(free):
    def body(cupy, stream, x):
        x @ x

    with pytest.raises(NotImplementedError, match="cuBLAS"):
        _capture(body)
    free.cublas_captures = True
    _capture(body)
