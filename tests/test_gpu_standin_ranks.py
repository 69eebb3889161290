"""Ranks with tensors on GPUs, without one: NCCL, the way by the host, the order of their work."""

import inspect
import re
import time
import warnings

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed import nccl as links
from distgrad.distributed import run_ranks
from distgrad.distributed.algorithms.ddp_comm_hooks import default_hooks, quantization_hooks
from distgrad.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    batched_powerSGD_hook,
    powerSGD_hook,
)
from distgrad.distributed.algorithms.ddp_comm_hooks.topk_hook import TopKState, topk_hook
from distgrad.errors import CaptureError, DeviceError, DistributedError
from distgrad.testing import device_ranks, standin
from distgrad.testing.device_ranks import check_close, check_same_bits, trained
from distgrad.testing.standin.array import TABLE

NEVER = 1 << 60
GPUS = 4


@pytest.fixture
def machine():
    """Four GPUs; fails where work was in no order, though the exception may have been swallowed."""
    with standin.installed(GPUS) as ledger:
        yield ledger
        assert not ledger.hazards and not ledger.refused


@pytest.fixture
def strict(machine):
    """The host never sees an event done: only streams wait."""
    machine.latency = NEVER
    return machine


@pytest.fixture
def by_host(monkeypatch):
    """Ranks that share a GPU have no windows of its memory; see test_gpu_standin_ipc.py."""
    monkeypatch.setenv("DISTGRAD_GPU_WINDOW", "0")


# ---------------------------------------------------------------------- the stand-in itself
def test_streams_memory_and_communicators_have_cupys_names():
    kinds = (*standin.streams.PUBLIC, standin.links.NcclCommunicator)
    for kind in kinds:
        members = TABLE["cupy.cuda"][kind.__name__]
        for name in (n for n in vars(kind) if n[0] != "_" and callable(getattr(kind, n))):
            if name not in standin.streams.PRIVATE:
                parameters = list(inspect.signature(getattr(kind, name)).parameters)[1:]
                assert members[name] == " ".join(parameters), (kind, name)
    with standin.installed():
        import cupy
        from cupy.cuda import nccl

        assert not hasattr(cupy.cuda, "nccl")
        named = {n: v for n, v in vars(nccl).items() if n.startswith("NCCL_")}
    assert named == TABLE["nccl"]


# ---------------------------------------------------------------------- collectives
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", device_ranks.COLLECTIVES)
def test_collectives_of_ranks_with_a_gpu_each(strict, name, ranks):
    device_ranks.check_collective(name, ranks, GPUS)
    assert ("nccl init" in strict.trace) == (name != "messages")


@pytest.mark.parametrize("name", device_ranks.COLLECTIVES)
def test_collectives_of_ranks_that_share_a_gpu(machine, name, by_host):
    device_ranks.check_collective(name, 3, 1)
    assert "nccl init" not in machine.trace


def test_a_collective_over_nccl_never_waits_for_the_gpu(strict):
    def body(group):
        place = device_ranks.place_of(group, GPUS)
        x = dg.ones(5, device=place) * group.rank
        dg.distributed.all_reduce(x)
        uploads = strict.uploads
        with standin.no_syncs():
            y = x * 2
            dg.distributed.all_reduce(y)
            y += 1
        return y.tolist(), strict.uploads - uploads

    assert [row for row, _ in run_ranks(2, body)] == [[5.0] * 5] * 2


def test_a_result_that_is_used_before_wait_is_a_hazard():
    with standin.installed(2) as ledger:
        ledger.latency = NEVER

        def body(group):
            x = dg.ones(5, device=device_ranks.place_of(group, 2))
            work = dg.distributed.all_reduce(x, async_op=True)
            while not work._transfer.is_completed():
                work._transfer.test()
            return x + 1

        with pytest.raises(Exception, match="wait for its event"):
            run_ranks(2, body)
        assert ledger.hazards


# ---------------------------------------------------------------------- training
def test_training_by_nccl_agrees_and_never_waits_for_a_gpu(strict):
    got = trained(4, GPUS, standin.no_syncs)
    check_close(got, trained(4, 0))
    check_same_bits(got[:1] * 3, got[1:])
    reduced = [line for line in strict.trace if "allReduce" in line]
    assert len(reduced) >= 2 * 4 * device_ranks.STEPS and "to host" not in str(strict.trace)


@pytest.mark.parametrize("gpus", [1, GPUS])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_world_has_the_same_bits_on_any_number_of_ranks_and_gpus(machine, ranks, gpus, by_host):
    got = trained(ranks, gpus, standin.no_syncs, determinism="world", shards=4)
    check_same_bits(got, trained(4, GPUS, determinism="world", shards=4))
    check_close(got, trained(4, 0, determinism="world", shards=4))
    assert "nccl allReduce" not in str(machine.trace)


def test_a_wrong_label_on_another_gpu_is_raised_once(machine):
    logits = dg.zeros(2, 3, device="cuda:1")
    losses = []
    with dg.cuda.device(1):
        for label in (7, 2):
            target = dg.tensor([0, label], device="cuda:1")
            losses.append(dg.nn.functional.cross_entropy(logits, target))
    assert dg.cuda.current_device() == 0
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        losses[0].item()
    assert losses[1].item() > 0


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_world_keeps_sums_next_to_0_that_cupys_kernels_would_flush(machine, ranks, by_host):
    got = run_ranks(ranks, device_ranks.tiny_gradient, 1)
    check_same_bits(got, run_ranks(1, device_ranks.tiny_gradient, 0) * ranks)
    assert got[0][0].all()


@pytest.mark.parametrize("determinism", ["off", "run"])
def test_ranks_that_share_a_gpu_go_by_the_host_and_never_wait_for_it(machine, determinism, by_host):
    got = trained(3, 1, standin.no_syncs, determinism=determinism)
    check_close(got, trained(3, 0, determinism=determinism))
    out = [line for line in machine.trace if line.startswith("to host")]
    back = [line for line in machine.trace if line.startswith("from host")]
    assert len(out) == len(back) >= 2 * 3 * device_ranks.STEPS
    assert not {line.split()[-1] for line in out} & {line.split()[-1] for line in back} & {"0"}


def test_buckets_are_copied_while_backward_goes_on(machine, by_host):
    """The first bucket leaves before the last gradient is there."""
    left = []

    def body(group):
        place = device_ranks.place_of(group, 1)
        net = dg.nn.Sequential(*[dg.nn.Linear(16, 16) for _ in range(3)]).to(place)
        ddp = dg.nn.parallel.DistributedDataParallel(net, process_group=group, bucket_cap_mb=0.0001)
        if group.rank == 0:
            first = net[0].weight
            first.register_hook(lambda g: left.append(str(machine.trace).count("to host")))
        ddp(dg.ones(2, 16, device=place)).sum().backward()

    run_ranks(2, body)
    assert left[0] >= 2


@pytest.mark.parametrize("gpus", [1, GPUS])
def test_zero_on_gpus(machine, gpus):
    got = trained(3, gpus, standin.no_syncs, device_ranks.zero)
    check_close(got, trained(3, 0, build=device_ranks.zero))


def test_batch_norm_over_gpus_by_nccl_never_waits_for_them(strict):
    def body(group, gpus):
        inside = standin.no_syncs if gpus else device_ranks.anything
        return device_ranks.normalised(group, gpus, inside)

    check_close(run_ranks(3, body, GPUS), run_ranks(3, body, 0))


def test_batch_norm_over_ranks_that_share_a_gpu(machine, by_host):
    body = device_ranks.normalised
    nothing = device_ranks.anything
    check_close(run_ranks(3, body, 1, nothing), run_ranks(3, body, 0, nothing))


@pytest.mark.parametrize("gpus", [1, GPUS])
@pytest.mark.parametrize("ranks", [1, 3])
def test_gradients_kept_by_their_owners_never_wait_for_a_gpu(machine, gpus, ranks):
    how = {"build": device_ranks.zero, "shard_gradients": True}
    got = trained(ranks, gpus, standin.no_syncs, **how)
    check_close(got, trained(ranks, 0, **how))
    check_close(got, trained(ranks, 0, build=device_ranks.zero))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("sharded", [False, True])
def test_world_and_zero_have_the_same_bits_on_any_number_of_gpus(machine, sharded, ranks, by_host):
    how = {"determinism": "world", "shards": 4}
    got = trained(ranks, 1, standin.no_syncs, device_ranks.zero, shard_gradients=sharded, **how)
    check_same_bits(got, trained(3, 3, build=device_ranks.zero, **how))
    check_close(got, trained(3, 0, build=device_ranks.zero, **how))


# ---------------------------------------------------------------------- proofs of order
def _without(monkeypatch, owner, name):
    monkeypatch.setattr(owner, name, lambda *args: None)


@pytest.mark.parametrize(
    ("owner", "name", "gpus"),
    [
        (links.Turn, "take", GPUS),  # the all-reduce does not wait for the gradients
        (links.Turn, "arrive", GPUS),  # the optimizer does not wait for the all-reduce
    ],
)
def test_without_an_event_training_by_nccl_is_a_hazard(monkeypatch, owner, name, gpus):
    with standin.installed(GPUS) as ledger:
        ledger.latency = NEVER
        _without(monkeypatch, owner, name)
        with pytest.raises(Exception, match="wait for its event"):
            trained(2, gpus)
        assert ledger.hazards


def test_without_its_event_the_way_back_is_a_hazard(monkeypatch, by_host):
    from distgrad.distributed import staging

    with standin.installed(1) as ledger:
        _without(monkeypatch, staging.Passage, "arrive")
        with pytest.raises(Exception, match="wait for its event"):
            trained(2, 1)
        assert ledger.hazards


# ---------------------------------------------------------------------- which way, and in words
def test_the_reason_for_the_way_by_the_host_is_said_to_who_asked_for_nccl(machine, by_host):
    def body(group, gpus, wanted):
        for sibling in group.siblings.values():
            sibling.nccl_wanted = wanted
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dg.distributed.all_reduce(dg.ones(2, device=device_ranks.place_of(group, gpus)))
        return [str(w.message) for w in caught]

    assert run_ranks(1, body, 1, True) == [[]]
    found = [text for texts in run_ranks(2, body, 1, True) for text in texts]
    assert any("ranks 0 and 1 share the GPU 0000:01:00.0, which NCCL refuses" in t for t in found)


def test_a_cupy_without_nccl_goes_by_the_host():
    with standin.installed(2, nccl=False):
        assert not dg.distributed.is_nccl_available()
        device_ranks.check_collective("all_reduce", 2, 2)
        places = [links.place_of(0), links.place_of(1)]
        assert re.search("rank 0: CuPy 14.* finds no NCCL; pip install", links.why_not(places))
    with standin.installed(2):
        assert dg.distributed.is_nccl_available()


def test_a_tensor_of_the_host_on_one_rank_only_is_named(machine):
    def body(group):
        place = device_ranks.place_of(group, GPUS) if group.rank else "cpu"
        dg.distributed.all_reduce(dg.ones(2, device=place))

    with pytest.raises(DistributedError, match="on a GPU, for the first time"):
        run_ranks(2, body)


def test_a_model_of_the_host_on_one_rank_only_is_named(machine):
    def body(group):
        place = device_ranks.place_of(group, GPUS) if group.rank else "cpu"
        dg.nn.parallel.DistributedDataParallel(dg.nn.Linear(2, 2).to(place), process_group=group)

    with pytest.raises(DistributedError, match="on a GPU"):
        run_ranks(2, body)


def test_tensors_of_another_gpu_than_before_are_named(machine):
    def body(group):
        dg.distributed.all_reduce(dg.ones(2, device=device_ranks.place_of(group, GPUS)))
        dg.cuda.set_device(group.rank + 2)
        with pytest.raises(DeviceError, match=f"communicates with cuda:{group.rank}"):
            dg.distributed.all_reduce(dg.ones(2, device="cuda"))

    run_ranks(2, body)
    machine.refused.clear()


# ---------------------------------------------------------------------- when it fails
def _await_error(group):
    """Wait for the thread that looks after the transfers."""
    deadline = time.monotonic() + 10
    while group.gpus.link._watch.error is None and time.monotonic() < deadline:
        time.sleep(0.01)
    group.barrier()


def test_an_error_of_nccl_ends_its_communicator_and_is_raised_at_the_next_call():
    from distgrad.testing.standin import nccl

    with standin.installed(2) as ledger:
        ledger.latency = NEVER

        def body(group):
            x = dg.ones(2, device=device_ranks.place_of(group, 2))
            dg.distributed.all_reduce(x)
            nccl.fail(group.gpus.link.comm)
            _await_error(group)
            with pytest.raises(DistributedError, match=r"remote process exited.*checkpoint"):
                dg.distributed.all_reduce(x)

        run_ranks(2, body)
        assert "nccl abort" in ledger.trace


def test_a_transfer_that_is_not_complete_in_time_is_aborted():
    with standin.installed(2) as ledger:
        ledger.latency = NEVER

        def body(group):
            x = dg.ones(2, device=device_ranks.place_of(group, 2))
            dg.distributed.all_reduce(x)
            before, group.timeout_s = group.timeout_s, 0.01
            dg.distributed.all_reduce(x)
            group.timeout_s = before
            _await_error(group)
            with pytest.raises(DistributedError, match="not complete in time"):
                dg.distributed.all_reduce(x)

        run_ranks(2, body)


# ---------------------------------------------------------------------- which GPU a rank has
def test_a_rank_starts_with_the_gpu_of_its_place_on_the_host(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "5")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "8")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "5")
    monkeypatch.setattr("distgrad.backend.device._CUDA_COUNT", 0)
    with standin.installed(4) as ledger:
        x = dg.ones(3, device="cuda").to("cpu")
        assert x.tolist() == [1, 1, 1] and dg.cuda.current_device() == 1
        assert ledger.contexts == {1}


def test_device_id_names_the_gpu(machine):
    def body(group):
        dg.distributed.init_process_group("nccl", device_id=f"cuda:{3 - group.rank}")
        return dg.cuda.current_device()

    assert run_ranks(2, body) == [3, 2]


def test_threads_of_communication_touch_their_own_gpu_only():
    with standin.installed(2) as ledger:

        def body(group):
            dg.cuda.set_device(1)
            device_ranks.steps(group, 1, standin.no_syncs, device_ranks.sgd)

        original = device_ranks.place_of
        try:
            device_ranks.place_of = lambda group, gpus: dg.device("cuda:1")
            run_ranks(2, body)
        finally:
            device_ranks.place_of = original
        assert ledger.contexts == {1}
        assert not np.any(ledger.hazards)


# ---------------------------------------------------------------------- hooks
def hooked(hook, gpus, streams=False):
    """Return what three ranks get in as many steps, and where their buckets were narrow."""
    places = []

    def noted(state, bucket):
        future = hook(state, bucket)
        places.append(bucket.buffer().data_ptr())
        return future

    def body(group):
        device_ranks.place_of(group, gpus)
        with dg.cuda.stream(dg.cuda.Stream() if streams else None):
            return device_ranks.compressed(group, gpus, standin.no_syncs, noted)

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run_ranks(3, body), places


HOOKS = {
    "allreduce": lambda: (None, default_hooks.allreduce_hook),
    "power": lambda: (PowerSGDState(None, 2, start_powerSGD_iter=2), powerSGD_hook),
    "batched": lambda: (PowerSGDState(None, 4, start_powerSGD_iter=2), batched_powerSGD_hook),
    "power in fp16": lambda: (
        PowerSGDState(None, 2, start_powerSGD_iter=2, orthogonalization_epsilon=1e-6),
        default_hooks.fp16_compress_wrapper(powerSGD_hook),
    ),
    "topk": lambda: (TopKState(ratio=0.2), topk_hook),
    "8 bits": lambda: (None, quantization_hooks.quantization_pertensor_hook),
    "8 bits in rows": lambda: (None, quantization_hooks.quantization_perchannel_hook),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_work_on_the_gpu_and_the_stream_of_their_rank(machine, name):
    def body(group, gpus):
        place = device_ranks.place_of(group, gpus)
        with dg.cuda.stream(dg.cuda.Stream()):
            net = dg.nn.Sequential(dg.nn.Linear(5, 24), dg.nn.Tanh(), dg.nn.Linear(24, 3))
            rng = np.random.default_rng(0)
            for p in net.parameters():
                p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape) / 2))
            net.to(place)
            ddp = dg.nn.parallel.DistributedDataParallel(
                net, process_group=group, bucket_cap_mb=1e-3
            )
            ddp.register_comm_hook(*HOOKS[name]())
            for number in range(4):
                ddp.zero_grad()
                x = np.random.default_rng(10 * number + group.rank).standard_normal((4, 5))
                ddp(dg.from_numpy(x.astype("f4")).to(place)).square().sum(1).mean().backward()
            return [p.grad.cpu().numpy() for p in net.parameters()]

    want, got = (run_ranks(2, body, gpus) for gpus in (0, 2))
    for one, other in zip(got, want, strict=True):
        for p, q in zip(one, other, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("gpus", [1, 3])
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_a_bucket_is_narrowed_and_widened_by_one_kernel_each(machine, kind, gpus, streams):
    hook = getattr(default_hooks, f"{kind}_compress_hook")
    want, _ = hooked(hook, 0)
    machine.launches.clear()
    got, places = hooked(hook, gpus, streams)
    check_same_bits(got, want)
    assert sorted(machine.launches) == ["compress"] * 9 + ["decompress"] * 9
    assert len(set(places)) == 3  # the same memory of each rank at each step


def test_a_hook_in_16_bits_sees_gradients_that_are_not_divided(machine):
    def mean(state, bucket):
        assert bucket.buffer().dtype is dg.bfloat16
        return default_hooks.allreduce_hook(state, bucket)

    hook = default_hooks.bf16_compress_wrapper(mean)
    want, _ = hooked(hook, 0)
    got, _ = hooked(hook, 2)
    np.testing.assert_array_equal(got[0][0], want[0][0])


def test_a_step_with_a_hook_is_not_captured(machine):
    def body(group):
        place = device_ranks.place_of(group, 2)
        net = dg.nn.Linear(2, 2).to(place)
        ddp = dg.nn.parallel.DistributedDataParallel(net, process_group=group)
        ddp.register_comm_hook(None, default_hooks.bf16_compress_hook)
        x = dg.ones(1, 2, device=place)
        ddp(x).sum().backward()
        dg.cuda.synchronize()
        refused = pytest.raises(CaptureError, match=r"communication hook.*leave out the hook")
        with refused, dg.cuda.graph(dg.cuda.CUDAGraph()):
            ddp(x).sum().backward()

    run_ranks(2, body)
