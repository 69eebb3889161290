"""Tensors on a GPU that is not the current one are computed there, as in PyTorch."""

import pytest

import distgrad as dg
from distgrad.backend.device import current_gpu, device
from distgrad.errors import DeviceError
from distgrad.testing import device_calls, device_memory, on_device, operations, standin
from distgrad.testing.standin import emulator

CASES = [pytest.param(n, i, id=f"{n}-{i}") for n, i in operations.cases()]
FIRST, SECOND = device("cuda:0"), device("cuda:1")
needs_compiler = pytest.mark.skipif(not emulator.compiler(), reason="g++ is not installed")
pytestmark = pytest.mark.usefixtures("_clean")


@pytest.fixture(scope="module", autouse=True)
def _two_gpus():
    with standin.installed(2):
        yield


@pytest.fixture
def _clean():
    """Fails where a GPU looked into the memory of another, or where the current one changed."""
    standin.ledger.refused.clear()
    yield
    assert not standin.ledger.refused
    assert current_gpu() == FIRST


@pytest.mark.parametrize(("name", "index"), CASES)
def test_operations_give_the_hosts_results(name, index):
    operations.check_device(name, index, SECOND)


@pytest.mark.parametrize("name", device_calls.CALLS)
def test_functions_of_many_operations_give_the_hosts_results(name):
    on_device.check_call(name, SECOND)


@pytest.mark.parametrize("name", on_device.RULES)
def test_optimizers_take_the_hosts_steps(name):
    on_device.check_rule(name, SECOND)


def test_a_line_search_finds_what_the_host_finds():
    on_device.check_lbfgs(SECOND)


@pytest.mark.parametrize("optimizer", on_device.OPTIMIZERS)
@pytest.mark.parametrize("model", on_device.MODELS)
def test_training_takes_the_hosts_steps(model, optimizer):
    on_device.check_training(model, optimizer, SECOND)


@pytest.mark.parametrize("model", on_device.MODELS)
def test_data_parallel_training_takes_the_hosts_steps(model):
    on_device.check_data_parallel(model, "mean", SECOND)


@pytest.mark.parametrize(
    "check",
    [
        on_device.check_numbers,
        on_device.check_views,
        pytest.param(on_device.check_random, marks=needs_compiler),
        pytest.param(on_device.check_dropout, marks=needs_compiler),
    ],
)
def test_tensors_behave_as_on_the_host(check):
    check(SECOND)


@needs_compiler
@pytest.mark.parametrize("name", device_memory.__all__)
def test_memory_is_written_again_where_nobody_holds_it(name):
    getattr(device_memory, name)(SECOND)


def test_states_and_files_move_between_devices(tmp_path):
    on_device.check_state(SECOND, tmp_path)


def test_a_model_may_lie_on_several_gpus():
    dg.manual_seed(0)
    model = dg.nn.Sequential(dg.nn.Linear(4, 8), dg.nn.Tanh(), dg.nn.Linear(8, 2))
    x = dg.randn(5, 4)
    host = _trained(model, x, lambda y: y)
    dg.manual_seed(0)
    model = dg.nn.Sequential(dg.nn.Linear(4, 8), dg.nn.Tanh(), dg.nn.Linear(8, 2))
    dg.randn(5, 4)
    model[0].to(SECOND)
    model[2].to(FIRST)
    model[1].register_forward_hook(lambda module, args, out: out.to(FIRST))
    there = _trained(model, x.to(SECOND), lambda y: y)
    for p, q in zip(host, there, strict=True):
        assert p.tolist() == pytest.approx(q.tolist(), rel=1e-5)


def _trained(model, x, last):
    optimizer = dg.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        last(model(x)).square().sum().backward()
        optimizer.step()
    return [p.detach().cpu().flatten() for p in model.parameters()]


@pytest.mark.parametrize("place", ["cpu", SECOND])
def test_functions_take_their_tensors_by_name(place):
    logits, target = dg.zeros(2, 4, device=place), dg.tensor([0, 1], device=place)
    loss = dg.nn.functional.cross_entropy(target=target, input=logits)
    assert loss.item() == pytest.approx(1.3862944)
    assert dg.unique(input=target, sorted=True).tolist() == [0, 1]
    assert dg.nn.functional.pad(input=logits, pad=(1, 0), mode="replicate").shape == (2, 5)


def test_operands_on_two_gpus_are_named():
    with pytest.raises(DeviceError) as caught:
        dg.ones(2, device=FIRST) + dg.ones(2, device=SECOND)
    assert "cuda:0" in str(caught.value) and "cuda:1" in str(caught.value)
    assert "same device" in str(caught.value)
