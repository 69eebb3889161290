"""The checks of tests/test_gpu_standin_ranks.py on real GPUs: a rank on each, and two on one."""

import functools

import pytest

import distgrad as dg
from distgrad.backend.device import cuda_device_count
from distgrad.distributed import run_ranks
from distgrad.distributed.algorithms.ddp_comm_hooks import default_hooks
from distgrad.testing import device_ranks
from distgrad.testing.device_ranks import anything, check_close, check_same_bits, trained

pytestmark = pytest.mark.gpu


@functools.cache
def gpus():
    return cuda_device_count()


def shared_or_not():
    """Return pairs of ranks and GPUs: two ranks on one, and one rank on each if there are more."""
    return [(2, 1)] if gpus() < 2 else [(2, 1), (gpus(), gpus())]


def pytest_generate_tests(metafunc):
    if "world" in metafunc.fixturenames:
        metafunc.parametrize("world", shared_or_not(), ids=lambda w: f"{w[0]} on {w[1]}")


@pytest.mark.parametrize("name", device_ranks.COLLECTIVES)
def test_collectives_give_the_hosts_results(name, world):
    device_ranks.check_collective(name, *world)


@pytest.mark.parametrize("build", [device_ranks.sgd, device_ranks.zero])
@pytest.mark.parametrize("determinism", ["off", "run", "world"])
def test_training_takes_the_hosts_steps(determinism, build, world):
    ranks, count = world
    got = trained(ranks, count, anything, build, determinism=determinism)
    check_close(got, trained(ranks, 0, anything, build, determinism=determinism))


def test_world_has_the_same_bits_on_any_number_of_ranks(world):
    ranks, count = world
    one = trained(1, 1, determinism="world", shards=ranks)
    for size in range(2, ranks + 1):
        got = trained(size, count, determinism="world", shards=ranks)
        check_same_bits(got, one)


def test_world_keeps_sums_next_to_0(world):
    one, more = (run_ranks(n, device_ranks.tiny_gradient, c) for n, c in ((1, 1), world))
    check_same_bits(more, one * len(more))


def test_training_by_nccl_has_the_same_bits_on_all_ranks_and_each_time():
    if gpus() < 2:
        pytest.skip("NCCL needs a GPU for each rank")
    first, second = (trained(gpus(), gpus()) for _ in range(2))
    check_same_bits(first, [first[0]] * gpus())
    check_same_bits(first, second)
    assert dg.distributed.is_nccl_available()


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_compressed_gradients_have_the_hosts_bits(kind, world):
    hook, body = getattr(default_hooks, f"{kind}_compress_hook"), device_ranks.compressed
    ranks, count = world
    got, want = (run_ranks(ranks, body, n, anything, hook) for n in (count, 0))
    check_same_bits(got, want)


def test_batch_norm_over_ranks_gives_the_hosts_results(world):
    ranks, count = world
    body = device_ranks.normalised
    check_close(run_ranks(ranks, body, count, anything), run_ranks(ranks, body, 0, anything))
