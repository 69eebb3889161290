"""Counts of the memory of GPUs, and their peaks, on the stand-in."""

import threading

import pytest

import distgrad as dg
from distgrad.cuda import memory, peaks
from distgrad.testing import standin

KIB = 256  # floats


@pytest.fixture(autouse=True)
def ledger():
    with standin.installed(2) as ledger:
        yield ledger
        assert not ledger.hazards and not ledger.refused
    peaks._counters.clear()


def _ones(kib):
    return dg.ones(kib * KIB, device="cuda")


def test_a_peak_between_two_questions_is_seen():
    keep = _ones(3)
    dg.cuda.reset_peak_memory_stats()
    base = dg.cuda.memory_allocated()
    assert base >= 3 << 10 and dg.cuda.max_memory_allocated() == base
    x = _ones(64)
    x = None
    assert dg.cuda.memory_allocated() == base
    assert base + (64 << 10) <= dg.cuda.max_memory_allocated() < base + (192 << 10)
    dg.cuda.reset_peak_memory_stats()
    assert dg.cuda.max_memory_allocated() == base and keep is not None and x is None


def test_peaks_are_those_of_all_threads_and_of_one_gpu():
    dg.cuda.reset_peak_memory_stats()
    kept = []

    def body():
        kept.append(_ones(32))
        _ones(100)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert dg.cuda.max_memory_allocated() >= 132 << 10
    assert dg.cuda.memory_allocated() < 100 << 10
    assert dg.cuda.max_memory_allocated(1) == 0


def test_what_a_thread_frees_unseen_makes_no_peak_too_large():
    dg.cuda.reset_peak_memory_stats()
    for _ in range(4):
        box = [_ones(50)]
        thread = threading.Thread(target=box.clear)  # it has taken nothing, so it has no hook
        thread.start()
        thread.join()
    assert dg.cuda.max_memory_allocated() < 150 << 10
    assert dg.cuda.memory_allocated() < 50 << 10


def test_pools_of_graphs_count():
    x = _ones(4)
    stream = dg.cuda.Stream()
    dg.cuda.reset_peak_memory_stats()
    before = dg.cuda.memory_allocated()
    graph = dg.cuda.CUDAGraph()
    with dg.cuda.graph(graph, stream=stream):
        y = x * 2
    assert dg.cuda.memory_allocated() >= before + (4 << 10)
    assert dg.cuda.max_memory_allocated() >= dg.cuda.memory_allocated()
    assert y.shape == x.shape


def test_stats_have_pytorchs_names():
    dg.cuda.reset_accumulated_memory_stats()
    _ones(8)
    stats = dg.cuda.memory_stats()
    assert stats["allocated_bytes.all.allocated"] >= 8 << 10
    assert stats["allocated_bytes.all.current"] == dg.cuda.memory_allocated()
    assert stats["allocated_bytes.all.peak"] == dg.cuda.max_memory_allocated() >= 8 << 10
    assert stats["reserved_bytes.all.peak"] == dg.cuda.max_memory_reserved() > 0
    assert stats["allocation.all.allocated"] >= stats["allocation.all.freed"] > 0
    nested = dg.cuda.memory_stats_as_nested_dict()
    assert nested["allocated_bytes"]["all"]["peak"] == stats["allocated_bytes.all.peak"]
    assert "allocated_bytes.all.peak" in dg.cuda.memory_summary()
    dg.cuda.reset_accumulated_memory_stats()
    assert dg.cuda.memory_stats()["allocation.all.allocated"] == 0


def test_free_and_total_bytes():
    before = dg.cuda.mem_get_info()
    x = _ones(16)
    free, total = dg.cuda.mem_get_info()
    assert total == before[1] and free <= before[0] - (16 << 10) and x.is_cuda


def test_nothing_is_counted_before_it_is_asked_for(monkeypatch):
    _ones(4)
    assert not peaks._counters and dg.cuda.memory_allocated() >= 0 and not peaks._counters
    assert memory.memory_reserved() >= 0 and not peaks._counters
