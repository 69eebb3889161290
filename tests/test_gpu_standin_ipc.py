"""Ranks that share a GPU and read each other's windows, without one: results, bits, order."""

import threading
import warnings

import numpy as np
import pytest

import distgrad as dg
from distgrad.backend.device import array_namespace
from distgrad.distributed import ipc, run_ranks
from distgrad.distributed import nccl as links
from distgrad.distributed.tree import Subtree, order_of
from distgrad.errors import CaptureError, DistributedError, RankLost
from distgrad.testing import device_capture, device_ranks, standin
from distgrad.testing.device_ranks import check_close, check_same_bits, trained

NEVER = 1 << 60
SMALL = "0.002"  # MiB: a few hundred numbers in a half, so that arrays take many turns


@pytest.fixture
def strict():
    """One GPU, whose events the host never sees done; fails for work in no order."""
    with standin.installed(1) as ledger:
        ledger.latency = NEVER
        yield ledger
        assert not ledger.hazards and not ledger.refused


@pytest.fixture
def apart(monkeypatch):
    """Threads that take each other for processes, and so open handles."""
    monkeypatch.setattr(ipc, "_process", threading.get_ident)


def _by_host(monkeypatch, body):
    with monkeypatch.context() as context:
        context.setenv("DISTGRAD_GPU_WINDOW", "0")
        return body()


# ---------------------------------------------------------------------- collectives
@pytest.mark.parametrize("window", ["32", SMALL])
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("name", device_ranks.COLLECTIVES)
def test_collectives_of_ranks_that_share_a_gpu(monkeypatch, strict, name, ranks, window):
    monkeypatch.setenv("DISTGRAD_GPU_WINDOW", window)
    device_ranks.check_collective(name, ranks, 1)
    assert "host" not in str(strict.trace) and "nccl" not in str(strict.trace)


@pytest.mark.parametrize("name", device_ranks.COLLECTIVES)
def test_collectives_of_ranks_that_are_processes(apart, strict, name):
    device_ranks.check_collective(name, 3, 1)


@pytest.mark.parametrize("ranks", [2, 3, 5, 7])
@pytest.mark.parametrize("dtype", ["f4", "f8", "bfloat16"])
def test_sums_have_the_bits_of_the_host(strict, monkeypatch, ranks, dtype):
    kind = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype

    def body(group, place):
        numbers = np.random.default_rng(group.rank).standard_normal(3000).astype(kind)
        x = dg.from_numpy(numbers).to(place)
        dg.distributed.all_reduce(x)
        return x.cpu().view(dg.uint8).numpy().tobytes()

    assert run_ranks(ranks, body, "cuda") == run_ranks(ranks, body, "cpu")


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "bfloat16"])
@pytest.mark.parametrize("op", ["sum", "avg", "prod", "max", "min"])
def test_one_kernel_has_the_bits_of_the_host(strict, dtype, op):
    kind, rng = getattr(pytest.importorskip("ml_dtypes"), dtype, dtype), np.random.default_rng(0)
    x = dg.zeros(1, device="cuda")
    xp = array_namespace(x.array)
    shards = [Subtree(0, 2), Subtree(2, 1), Subtree(3, 1)]
    for ranks, parts, n, shift in ((2, [], 1, 0), (5, [], 1003, 0), (3, shards, 1000, 1)):
        hosts = [(rng.standard_normal(n + shift) * 3).astype(kind) for _ in range(ranks)]
        hosts[0][-1] = np.nan if op in ("max", "min") else 1e-40  # and small numbers stay
        hosts[1][-1] = 2e-40
        given = [xp.asarray(host)[shift:] for host in hosts]  # aligned to 16 bytes, or not
        got = xp.empty(n, kind)
        ipc.reduce_into(op, parts, given, got)
        order = order_of(tuple(parts or [Subtree(rank, 1) for rank in range(ranks)]))
        wide = kind if parts or got.itemsize > 2 else np.float32
        rows = [host[shift:].astype(wide) for host in hosts]
        total = ipc._folded(getattr(np, ipc._COMBINE[op]), order, rows)
        want = (total / ranks if op == "avg" else total).astype(kind)
        assert got.get().tobytes() == want.tobytes()
    assert strict.launches == ["reduce_windows"] * 3


def test_a_turn_is_read_in_one_launch(monkeypatch, strict):
    monkeypatch.setenv("DISTGRAD_GPU_WINDOW", str(2 * 400 / 2**20))  # 256 bytes a half
    run_ranks(2, lambda group: dg.distributed.all_reduce(dg.ones(640, device="cuda")))
    assert strict.launches == ["reduce_windows"] * (2 * 640 * 4 // 512)


def test_windows_have_room_for_all_ranks(monkeypatch, strict):
    monkeypatch.setenv("DISTGRAD_GPU_WINDOW", "0.00001")
    for name in ("exchanges", "messages"):
        device_ranks.check_collective(name, 7, 1)


def test_a_collective_waits_for_hosts_and_never_for_the_gpu(strict):
    def body(group):
        x = dg.ones(5, device="cuda") * group.rank
        dg.distributed.all_reduce(x)
        uploads = strict.uploads
        with standin.no_syncs():
            y = x * 2
            dg.distributed.all_reduce(y)
            y += 1
        assert type(group.gpus.link) is ipc.Link
        return y.tolist(), strict.uploads - uploads

    assert [row for row, _ in run_ranks(2, body)] == [[5.0] * 5] * 2


# ---------------------------------------------------------------------- training
@pytest.mark.parametrize("determinism", ["off", "run"])
def test_training_has_the_bits_of_the_way_by_the_host(monkeypatch, strict, determinism):
    got = trained(3, 1, standin.no_syncs, determinism=determinism)
    assert "host" not in str(strict.trace)
    strict.latency = 2
    want = _by_host(monkeypatch, lambda: trained(3, 1, determinism="run"))
    check_same_bits(got, want)
    assert "to host" in str(strict.trace)


@pytest.mark.parametrize("build", [device_ranks.sgd, device_ranks.zero])
@pytest.mark.parametrize(("ranks", "windows"), [(2, True), (3, True), (4, True)])
def test_world_has_the_bits_of_any_number_of_ranks(monkeypatch, strict, build, ranks, windows):
    monkeypatch.setenv("DISTGRAD_GPU_WINDOW", SMALL)
    how = {"determinism": "world", "shards": 4, "build": build}
    got = trained(ranks, 1, standin.no_syncs, **how)
    assert ("to host" not in str(strict.trace)) == windows
    strict.latency = 2
    check_same_bits(got, trained(1, 1, **how) * ranks)


@pytest.mark.parametrize("ranks", [2, 3])
def test_gradients_kept_by_their_owners(strict, ranks):
    how = {"build": device_ranks.zero, "shard_gradients": True}
    check_close(trained(ranks, 1, standin.no_syncs, **how), trained(ranks, 0, **how))


def test_batch_norm_over_ranks_that_share_a_gpu(strict):
    def body(group, gpus):
        inside = standin.no_syncs if gpus else device_ranks.anything
        return device_ranks.normalised(group, gpus, inside)

    check_close(run_ranks(3, body, 1), run_ranks(3, body, 0))


# ---------------------------------------------------------------------- proofs of order
def test_without_the_event_of_a_window_there_is_a_hazard(monkeypatch):
    monkeypatch.setattr(ipc.Opened, "wait", lambda self, half, stream: None)
    with standin.installed(1) as ledger:
        ledger.latency = NEVER
        with pytest.raises(Exception, match="wait for its event"):
            run_ranks(2, lambda group: dg.distributed.all_reduce(dg.ones(5000, device="cuda")))
        assert "is writing" in str(ledger.hazards)


def test_windows_of_one_half_are_a_hazard(monkeypatch):
    """A half that is filled in the next turn is one that others may be reading."""
    monkeypatch.setenv("DISTGRAD_GPU_WINDOW", SMALL)
    right = ipc.Window.__init__

    def one(self, nbytes):
        right(self, nbytes)
        self.memory[1] = self.memory[0]

    monkeypatch.setattr(ipc.Window, "__init__", one)
    with standin.installed(1) as ledger:
        ledger.latency = NEVER
        with pytest.raises(Exception, match="wait for its event"):
            run_ranks(2, lambda group: dg.distributed.all_reduce(dg.ones(5000, device="cuda")))
        assert ledger.hazards


@pytest.mark.parametrize("name", ["take", "arrive"])
def test_without_an_event_of_the_turn_training_is_a_hazard(monkeypatch, name):
    with standin.installed(1) as ledger:
        ledger.latency = NEVER
        monkeypatch.setattr(links.Turn, name, lambda self: None)
        with pytest.raises(Exception, match="wait for its event"):
            trained(2, 1)
        assert ledger.hazards


# ---------------------------------------------------------------------- where there are none
def test_without_handles_tensors_go_by_the_host_and_the_reason_is_said(monkeypatch):
    with standin.installed(1):
        import cupy

        def refuse(ptr):
            raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorNotSupported: not supported")

        monkeypatch.setattr(cupy.cuda.runtime, "ipcGetMemHandle", refuse)

        def body(group):
            for sibling in group.siblings.values():
                sibling.nccl_wanted = True
            x = dg.ones(3, device="cuda")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                dg.distributed.all_reduce(x)
            assert x.tolist() == [2, 2, 2] and group.gpus.link is None
            return [str(w.message) for w in caught]

        text = " ".join(t for texts in run_ranks(2, body) for t in texts)
    for words in ("share the GPU", "no handles of its GPU's memory", "by way of the host"):
        assert words in text


def test_gpus_that_cannot_reach_each_other_go_by_the_host():
    with standin.installed(2, nccl=False):

        def body(group):
            dg.distributed.all_reduce(dg.ones(2, device=device_ranks.place_of(group, 2)))
            return group.gpus.link, group.gpus.why

        (link, why), _ = run_ranks(2, body)
    assert link is None and "cannot read the memory of cuda:1" in why


def test_ranks_of_several_hosts_go_by_the_host(monkeypatch):
    with standin.installed(1, nccl=False):
        right = links.place_of
        names = iter("ab")
        monkeypatch.setattr(links, "place_of", lambda i: right(i)._replace(host=next(names)))

        def body(group):
            dg.distributed.all_reduce(dg.ones(2, device="cuda"))
            return group.gpus.why

        assert "several hosts" in run_ranks(2, body)[0]


# ---------------------------------------------------------------------- when it fails
def test_a_rank_that_fails_ends_the_transfers_of_the_others():
    with standin.installed(1):

        def body(group):
            x = dg.ones(2, device="cuda")
            dg.distributed.all_reduce(x)
            link = group.gpus.link
            if group.rank:
                link._watch.fail("a transfer", "failed for the test")
                group.barrier()
                return
            group.barrier()
            turn = links.Turn(link)
            turn.take()
            with pytest.raises(DistributedError, match=r"rank 1 has ended.*checkpoint"):
                turn.run("all_reduce", "all_reduce(x)", x.array, x.array, "sum")
                turn.arrive()

        run_ranks(2, body)


def test_a_rank_that_is_lost_is_lost_to_windows_too():
    told = threading.Event()
    with standin.installed(1):

        def body(group):
            x = dg.ones(2, device="cuda")
            dg.distributed.all_reduce(x)
            link = group.gpus.link

            def poll():
                raise RankLost("rank 1 has ended; shrink() lets the others go on")

            if group.rank == 0:
                link._slab.poll = poll
                turn = links.Turn(link)
                turn.take()
                with pytest.raises(RankLost, match=r"^rank 1 has ended; shrink"):
                    turn.run("all_reduce", "all_reduce(x)", x.array, x.array, "sum")
                    turn.arrive()
                told.set()
            told.wait(10)

        run_ranks(2, body)


def test_ranks_that_make_different_calls_are_told():
    with standin.installed(1):

        def body(group):
            x = dg.ones(2, device="cuda")
            dg.distributed.all_reduce(x)
            turn = links.Turn(group.gpus.link)
            turn.take()
            with pytest.raises(DistributedError, match=r"makes another call|has failed"):
                turn.run("all_reduce", f"sum {group.rank}", x.array, x.array, "sum")
                turn.arrive()

        run_ranks(2, body)


def test_a_graph_that_would_need_other_ranks_is_refused():
    refused = pytest.raises(CaptureError, match=r"all_reduce\(bucket 0 .*turn by turn")
    with standin.installed(1), refused:
        run_ranks(2, device_capture.parallel, 1, True, False, False)


def test_windows_are_bounded_and_given_back(strict):
    def body(group):
        dg.distributed.all_reduce(dg.ones(40000, device="cuda"))
        link = group.gpus.link
        assert sum(m.size for m in link._window.memory) <= 32 * 2**20
        assert not link._queue and type(link._window.memory[0]).__name__ == "RawMemory"

    run_ranks(2, body)
