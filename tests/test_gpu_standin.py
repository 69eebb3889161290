"""Everything on a device, without one: CuPy's stand-in refuses what CuPy refuses."""

import sys

import numpy as np
import pytest

import distgrad as dg
from distgrad.backend.device import cuda_device_count, device, is_cuda_available
from distgrad.errors import DeviceError, DistgradError
from distgrad.nn import functional as F
from distgrad.testing import device_calls, device_memory, on_device, operations, standin
from distgrad.testing.standin import emulator

CASES = [pytest.param(n, i, id=f"{n}-{i}") for n, i in operations.cases()]
PLACE = device("cuda:0")
needs_compiler = pytest.mark.skipif(not emulator.compiler(), reason="g++ is not installed")


@pytest.fixture(scope="module", autouse=True)
def _standin():
    with standin.installed():
        yield


@pytest.fixture
def clean():
    """Fails the test where something was refused, though the exception may have been swallowed."""
    standin.ledger.refused.clear()
    yield
    assert not standin.ledger.refused


# ---------------------------------------------------------------------- the library on the stand-in
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(("name", "index"), CASES)
def test_operations_give_the_hosts_results(name, index):
    operations.check_device(name, index, PLACE)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(("name", "index"), CASES)
def test_operations_keep_float32(name, index):
    operations.check_device(name, index, PLACE, np.float32)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("name", "index"), [c for c in CASES if c.values[0] in operations.FUSED])
def test_fused_operations_take_narrow_types(name, index, dtype):
    pytest.importorskip("ml_dtypes")
    operations.check_device_narrow(name, index, PLACE, getattr(dg, dtype).numpy)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("name", device_calls.CALLS)
def test_functions_of_many_operations_give_the_hosts_results(name):
    on_device.check_call(name, PLACE)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("name", on_device.RULES)
def test_optimizers_take_the_hosts_steps(name):
    on_device.check_rule(name, PLACE)


@pytest.mark.usefixtures("clean")
def test_a_line_search_finds_what_the_host_finds():
    on_device.check_lbfgs(PLACE)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("optimizer", on_device.OPTIMIZERS)
@pytest.mark.parametrize("model", on_device.MODELS)
def test_training_takes_the_hosts_steps(model, optimizer):
    on_device.check_training(model, optimizer, PLACE)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("model", on_device.MODELS)
def test_data_parallel_training_takes_the_hosts_steps(model, reduction):
    on_device.check_data_parallel(model, reduction, PLACE)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    "check",
    [
        on_device.check_conversions,
        on_device.check_numbers,
        on_device.check_views,
        on_device.check_linalg_errors,
    ],
)
def test_tensors_behave_as_on_the_host(check):
    check(PLACE)


@needs_compiler
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    "check", [on_device.check_random, on_device.check_dropout, on_device.check_wrong_numbers]
)
def test_devices_draw_and_find_by_themselves(check):
    check(PLACE)


@needs_compiler
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("name", device_memory.__all__)
def test_memory_is_written_again_where_nobody_holds_it(name):
    getattr(device_memory, name)(PLACE)


def test_random_operations_know_vmap_and_forward_mode():
    on_device.check_random_transforms(PLACE)


@pytest.mark.usefixtures("clean")
def test_states_and_files_move_between_devices(tmp_path):
    on_device.check_state(PLACE, tmp_path)


def test_operands_on_two_devices_are_named():
    on_device.check_mixed_devices(PLACE)


def test_a_number_beside_a_device_tensor_is_not_called_another_device():
    with pytest.raises(DistgradError) as caught:
        dg.add(dg.ones(2, device=PLACE), 2.0, alpha="much")
    assert "same device" not in str(caught.value)


def test_numbers_met_on_the_host_before_cuda_started_serve_on_the_device_too():
    with standin.installed():
        assert (dg.ones(2) * 2.625).tolist() == [2.625, 2.625]
        assert (dg.ones(2, device="cuda") * 2.625).tolist() == [2.625, 2.625]


@pytest.mark.parametrize("model", on_device.MODELS)
def test_a_training_step_never_waits_for_the_device(model):
    net = on_device.MODELS[model]().to("cuda")
    optimizer = dg.optim.AdamW(net.parameters())
    for _ in range(2):
        x, y = on_device.batch(model, np.random.default_rng(0))
        x = dg.from_numpy(x if model == "text" else x.astype("f4")).to("cuda")
        y = dg.from_numpy(y).cuda().reshape(-1)
        with standin.no_syncs():
            out = net(x)
            F.cross_entropy(out.reshape(-1, out.shape[-1]), y).backward()
            dg.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


KERNELS = {
    "perceptron": {"cross_entropy", "d_cross_entropy", "dropout"},
    "images": {"plane_moments", "scale_channels", "d_scale_channels", "move_statistics", "relu",
               "d_relu", "max_pool", "d_max_pool", "gelu", "d_gelu"},
    "text": {"embedding", "sort_by_digit", "add_pieces", "layer_norm", "d_layer_norm",
             "column_sums", "gelu", "d_gelu", "dropout", "cross_entropy"},
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("model", on_device.MODELS)
def test_a_training_step_runs_kernels_of_its_own(model):
    net = on_device.MODELS[model]().to("cuda")
    x, y = on_device.batch(model, np.random.default_rng(0))
    x = dg.from_numpy(x if model == "text" else x.astype("f4")).to("cuda")
    standin.ledger.launches.clear()
    out = net(x)
    y = dg.from_numpy(y).cuda().reshape(-1)
    F.cross_entropy(out.reshape(-1, out.shape[-1]), y).backward()
    assert KERNELS[model] <= set(standin.ledger.launches)


@pytest.mark.parametrize("name", on_device.RULES)
def test_a_step_of_an_optimizer_never_waits_for_the_device(name):
    p = dg.ones(3, 4, device="cuda", requires_grad=True)
    optimizer = on_device.RULES[name]([p])
    p.grad = dg.ones(3, 4, device="cuda")
    with standin.no_syncs():
        optimizer.step()
        optimizer.step()


def test_a_lookup_and_its_gradient_never_wait_for_the_device():
    x = dg.ones(3, 4, device="cuda", requires_grad=True)
    index = dg.tensor([1, -1], device="cuda")
    with standin.no_syncs():
        x[:, index].sum().backward()
    assert x.grad.tolist() == [[0, 1, 0, 1]] * 3


# ---------------------------------------------------------------------- the stand-in itself
def ones(*shape):
    import cupy

    return cupy.ones(shape)


def test_numpy_and_the_stand_in_do_not_mix():
    import cupy

    x, host = ones(3), np.ones(3)
    for mixture in (
        lambda: np.asarray(x),
        lambda: np.add(x, 1),
        lambda: np.sum(x),
        lambda: np.concatenate([x, x]),
        lambda: x + host,
        lambda: host + x,
        lambda: cupy.add(x, host),
        lambda: cupy.concatenate([x, host]),
        lambda: x[host.astype(int)],
        lambda: x.__setitem__(0, host),
        lambda: cupy.sum(np.float64(1)),
        lambda: cupy.where(host > 0, x, x),
    ):
        with pytest.raises(TypeError):
            mixture()
    assert (np.float64(2) * x + 1).tolist() == [3, 3, 3]
    assert cupy.asarray(host).get().tolist() == [1, 1, 1]


def test_what_cupy_has_not_is_refused():
    import cupy
    import cupyx

    x = ones(3)
    for call in (
        lambda: cupy.sum(x, where=x > 0),
        lambda: x.max(initial=0),
        lambda: cupy.clip(x, min=0),
        lambda: cupy.logical_not(x.astype(complex)),
        lambda: cupy.multiply(x, x, where=x > 0),
    ):
        with pytest.raises(TypeError):
            call()
    for call in (
        lambda: cupy.maximum.reduce(x),
        lambda: x.ravel("K"),
        lambda: cupyx.errstate(divide="ignore").__enter__(),
    ):
        with pytest.raises(NotImplementedError):
            call()
    for module, name in (
        (cupy, "vecdot"),
        (cupy, "errstate"),
        (x.flags, "writeable"),
        (x, "ctypes"),
    ):
        assert not hasattr(module, name)


def test_what_is_undefined_on_a_device_is_refused():
    import cupy
    import cupyx

    x = ones(3)
    with pytest.raises(IndexError, match="wraps"):
        x[cupy.array([3])]
    twice = cupy.array([1, 1])
    with pytest.raises(TypeError, match="stored twice"):
        x[twice] = ones(2)
    x[twice] = 5
    cupyx.scatter_add(x, twice, ones(2))
    assert x.tolist() == [1, 7, 1]


def test_waits_of_the_host_are_counted_and_can_be_forbidden():
    x = ones(3)
    before = standin.ledger.syncs
    total = x.sum()
    assert total.shape == () and standin.ledger.syncs == before
    assert float(total) == 3 and len(x[x > 0].tolist()) == 3
    assert standin.ledger.syncs == before + 3
    with standin.no_syncs(), pytest.raises(standin.HostSync):
        bool(total)
    assert bool(total)


def test_views_know_their_base_but_strided_ones_do_not():
    import cupy

    x = ones(4)
    assert x[1:].base is x and x[1:].reshape(3, 1).base is x and (x + 1).base is None
    assert cupy.lib.stride_tricks.as_strided(x, (2,), (16,)).base is None


@pytest.mark.parametrize(
    ("count", "why"),
    [(0, "the NVIDIA driver reports no GPU; expose one"), (-1, "there is no NVIDIA driver ")],
)
def test_without_a_gpu_the_reason_is_said(count, why):
    with standin.installed(count):
        assert cuda_device_count() == 0 and not is_cuda_available()
        with pytest.raises(DeviceError, match=f"is installed, but {why}"):
            dg.ones(2, device="cuda")
    assert is_cuda_available()


def test_without_cupy_the_way_to_install_it_is_said(monkeypatch):
    with standin.installed():
        monkeypatch.setitem(sys.modules, "cupy", None)
        with pytest.raises(DeviceError, match="CuPy is not installed; pip install"):
            dg.ones(2).cuda()


def test_nothing_is_left_of_the_stand_in():
    ours = sys.modules["cupy"]
    with standin.installed(2):
        assert sys.modules["cupy"] is not ours and cuda_device_count() == 2
        with dg.cuda.device(1):
            dg.ones(2, device="cuda:1").sum().item()
    assert sys.modules["cupy"] is ours and cuda_device_count() == 1
    standin._take_out()
    try:
        assert not {"cupy", "cupyx"} & set(sys.modules)
        assert "distgrad.backend.cupy_backend" not in sys.modules
        assert (dg.ones(2) * 2.0).tolist() == [2.0, 2.0]
    finally:
        sys.modules.update(standin.make_modules(1))
