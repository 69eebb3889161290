"""Matrix products on a device, without one: what cuBLASLt is told, and what comes of it."""

import subprocess
import sys
import threading

import numpy as np
import pytest

import distgrad as dg
from distgrad import nn
from distgrad.autograd import engine
from distgrad.autograd.declare import table
from distgrad.backend.device import device
from distgrad.distributed import run_ranks
from distgrad.errors import DtypeError, DtypeNotImplemented, MissingExtra, ShapeError
from distgrad.nn.parallel import DistributedDataParallel
from distgrad.testing import device_products as products
from distgrad.testing import no_gpu, standin
from distgrad.testing.standin import cublaslt

PLACE = device("cuda:0")


@pytest.fixture(autouse=True)
def relu_epilogue(monkeypatch):
    """Let linear layers do the ReLU after them, which is off unless asked for."""
    monkeypatch.setenv("DISTGRAD_RELU_EPILOGUE", "1")


@pytest.fixture(params=[True, False], ids=["cuBLASLt", "cuBLAS"])
def either(request):
    with standin.installed(nvmath=request.param) as ledger:
        yield ledger
        assert not ledger.refused


@pytest.fixture
def ledger():
    with standin.installed() as ledger:
        yield ledger
        assert not ledger.refused


@pytest.fixture
def gemm(ledger):
    """Return the module; the stand-in has one of its own."""
    dg.ones(1, device="cuda")
    from distgrad.backend.cuda import gemm

    return gemm


def cuda(*shape, dtype="float32", seed=0):
    x = np.random.default_rng(seed).standard_normal(shape).astype("f4")
    return dg.from_numpy(x).to(getattr(dg, dtype)).to("cuda")


# ---------------------------------------------------------------------- products
@pytest.mark.parametrize("dtype", products.DTYPES)
@pytest.mark.usefixtures("either")
def test_every_layout_gives_the_hosts_product(dtype):
    for shapes in products.SHAPES:
        products.check_layouts(shapes, dtype, PLACE)


@pytest.mark.usefixtures("either")
def test_alpha_and_beta_may_lie_on_the_device():
    products.check_scalars(PLACE)


VIEWS = {
    "transposed": lambda x: (x, x.mT),
    "rows of a stack": lambda x: (x, x[0].mT),
    "a matrix for all": lambda x: (x[:1].expand(4, -1, -1), x.mT),
    "every second row": lambda x: (x[:, ::2], x.mT),
    "the last columns": lambda x: (x[..., 2:], x[..., 2:].mT),
    "heads": lambda x: (x.view(1, 4, 6, 8)[..., :4], x.view(1, 4, 6, 8)[..., 4:].mT),
}


@pytest.mark.parametrize("views", VIEWS)
def test_views_are_multiplied_without_a_copy(gemm, views, monkeypatch):
    x = cuda(4, 6, 8)
    a, b = VIEWS[views](x)
    want = np.matmul(a.cpu().numpy(), b.cpu().numpy())
    monkeypatch.setattr(gemm.cupy, "ascontiguousarray", None)
    np.testing.assert_allclose((a @ b).cpu().numpy(), want, rtol=1e-4, atol=1e-5)


def test_rows_of_a_stack_times_a_matrix_are_one_product(gemm):
    cuda(5, 3, 4) @ cuda(4, 2)
    (recipe,) = gemm._mine.recipes.values()
    assert (recipe.problem.batch, recipe.problem.n) == (1, 15)


def test_a_kernel_is_chosen_once_for_each_shape_and_alignment(ledger):
    x, w = cuda(8, 16), cuda(16, 24)
    before = len(cublaslt._algorithms)
    for _ in range(3):
        x @ w
    assert len(cublaslt._algorithms) == before + 1
    x[1:] @ w  # another shape
    x.view(-1)[1:121].view(8, 15) @ w[:15]  # and one that is aligned to 4 bytes only
    assert len(cublaslt._algorithms) == before + 3


def test_sixteen_bits_add_up_in_float32(ledger):
    for kind in ("float16", "bfloat16"):
        x = dg.full((1, 4096), 0.1, dtype=getattr(dg, kind), device="cuda")
        want = float(x[0, 0].float()) ** 2 * 4096
        for product in (x @ x.mT, x[None] @ x[None].mT, dg.einsum("bi,bi->b", x, x)):
            assert abs(float(product.float()) / want - 1) < 4e-3


def test_cupys_own_products_are_not_good_enough():
    with standin.installed():
        x = dg.ones(2, 3, 3, dtype=dg.bfloat16, device="cuda")
        with pytest.raises(TypeError, match="bfloat16"):
            sys.modules["cupy"].matmul(x.array, x.array)
        assert (x @ x).tolist() == [[[3.0] * 3] * 3] * 2


def test_tf32_is_used_where_it_is_allowed(ledger):
    x = dg.full((1, 1), 1 + 2.0**-12, device="cuda")
    assert float(x @ x) != 1
    assert not dg.backends.cuda.matmul.allow_tf32
    dg.set_float32_matmul_precision("high")
    try:
        assert dg.backends.cuda.matmul.allow_tf32
        assert float(x @ x) == 1
        assert float(x.double() @ x.double()) != 1
    finally:
        dg.backends.cuda.matmul.allow_tf32 = False
    assert dg.get_float32_matmul_precision() == "highest"
    assert float(x @ x) != 1


def test_products_go_to_the_device_of_their_operands():
    with standin.installed(2) as machine:
        x = dg.ones(2, 2, device="cuda:1")
        for _ in range(2):
            assert (x @ x).device == dg.device("cuda:1")
        assert machine.products == ["DEFAULT"] * 2
        assert sys.modules["cupy"].cuda.runtime.getDevice() == 0


@pytest.mark.usefixtures("ledger")
def test_errors_name_the_operands():
    with pytest.raises(ShapeError, match=r"3x4 and 3x4.*the last size of input, 4"):
        cuda(3, 4) @ cuda(3, 4)
    with pytest.raises(DtypeError, match="float32 != float64"):
        cuda(3, 4) @ cuda(4, 3).double()
    with pytest.raises(DtypeNotImplemented, match="bool"):
        cuda(3, 4).bool() @ cuda(4, 3).bool()


@pytest.mark.parametrize("name", ["addmm", "baddbmm", "einsum", "tensordot", "lstm", "gru", "rnn"])
def test_what_is_made_of_products_gives_the_hosts_results(either, name):
    def made(place):
        dg.manual_seed(0)
        a, b, c = (dg.randn(2, 3, 3).to(place).requires_grad_() for _ in range(3))
        layer = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}.get(name, nn.LSTM)(3, 3).to(place)
        calls = {
            "addmm": lambda: dg.addmm(a[0, 0], b[0], c[0]),
            "baddbmm": lambda: dg.baddbmm(a, b, c, beta=0.5, alpha=2.0),
            "einsum": lambda: dg.einsum("bij,bkj->ik", a, b),
            "tensordot": lambda: dg.tensordot(a, b, ([2, 0], [1, 0])),
        }
        out = calls[name]() if name in calls else layer(a)[0]
        (out * out).sum().backward()
        found = [out, *(t.grad for t in (a, b, c, *layer.parameters()))]
        return [t.detach().cpu().numpy() for t in found if t is not None]

    for want, got in zip(made("cpu"), made("cuda"), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- epilogues
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.usefixtures("either")
def test_chains_of_layers_give_the_hosts_results(dtype):
    for activation in ("relu", "gelu_tanh", "gelu"):
        products.check_chain(activation, dtype, PLACE, train=True)
        products.check_chain(activation, dtype, PLACE, train=False)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.usefixtures("either")
def test_a_layer_gives_the_hosts_results(dtype):
    products.check_layer(dtype, PLACE, bias=True)
    products.check_layer(dtype, PLACE, bias=False)


def chain(ledger, net, *, backward=True):
    ledger.products.clear()
    out = net(cuda(4, 6))
    if backward:
        out.sum().backward()
    return ledger.products


def test_activations_and_bias_gradients_cost_no_pass_of_their_own(ledger):
    net = products.perceptron("relu").to("cuda")
    assert chain(ledger, net) == [
        "RELU_AUX_BIAS", "RELU_AUX_BIAS", "BIAS",  # forward
        "DRELU_BGRAD", "BGRADB",  # the last layer: to the activation before, its weight and bias
        "DRELU_BGRAD", "DEFAULT", "DEFAULT",
    ]  # fmt: skip
    with dg.no_grad():
        assert chain(ledger, net, backward=False) == ["RELU_BIAS", "RELU_BIAS", "BIAS"]
    assert "GELU_AUX_BIAS" in chain(ledger, products.perceptron("gelu_tanh").to("cuda"))
    erf = chain(ledger, products.perceptron("gelu").to("cuda"))
    assert set(erf) == {"BIAS", "BGRADB", "DEFAULT"}  # cuBLASLt's GELU is the one by tanh


def test_relu_stays_an_operation_of_its_own_unless_asked_for(ledger, monkeypatch):
    """cuBLASLt's makes 0 of nan, and a model that has diverged would look healthy."""
    monkeypatch.delenv("DISTGRAD_RELU_EPILOGUE")
    net = products.perceptron("relu").to("cuda")
    assert set(chain(ledger, net)) == {"BIAS", "BGRADB", "DEFAULT"}
    with dg.no_grad():
        net[0].weight.fill_(float("nan"))
        assert net(cuda(4, 6)).isnan().all()


def _hook(net):
    net[1].register_forward_hook(lambda *a: None)


def _input_hook(net):
    net[0].register_forward_pre_hook(lambda *a: None)


def _own_class(net):
    net[0] = type("MyLinear", (nn.Linear,), {})(6, 20).to("cuda")


def _own_forward(net):
    net[0].forward = net[0].forward


@pytest.mark.parametrize("change", [_hook, _input_hook, _own_class, _own_forward])
def test_modules_that_somebody_looks_at_are_called_for_themselves(ledger, change):
    net = products.perceptron("relu").to("cuda")
    change(net)
    assert chain(ledger, net, backward=False)[:2] == ["BIAS", "RELU_AUX_BIAS"]


def test_hooks_on_the_tensor_between_see_its_gradient(ledger):
    layer, after = nn.Linear(6, 20).to("cuda"), nn.Linear(20, 3).to("cuda")
    for seen in (True, False):
        ledger.products.clear()
        hidden = nn.Sequential(layer, nn.ReLU())(cuda(4, 6))
        gradients = []
        if seen:
            hidden.register_hook(gradients.append)
        after(hidden).sum().backward()
        assert ("DRELU_BGRAD" in ledger.products) is not seen
        if seen:
            want = after.weight.detach().sum(0).expand(4, -1)
            np.testing.assert_allclose(gradients[0].cpu(), want.cpu(), rtol=1e-5)


def test_a_hidden_tensor_that_two_layers_read_gets_both_gradients(ledger):
    def made(place):
        dg.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 20), nn.ReLU()).to(place)
        heads = [nn.Linear(20, 3).to(place) for _ in range(2)]
        hidden = net(dg.ones(4, 6, device=place))
        (heads[0](hidden).sum() + (heads[1](hidden) ** 2).sum()).backward()
        return [p.grad.cpu().numpy() for p in net.parameters()]

    for want, got in zip(made("cpu"), made("cuda"), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_operands_may_begin_anywhere(ledger, dtype):
    room, x = cuda(200, dtype=dtype), cuda(4, 8, dtype=dtype)
    for first in (0, 1, 2, 8, 64):
        weight, bias = room[first : first + 64].view(8, 8), room[2 * first : 2 * first + 8]
        out = nn.functional.linear(x, weight, bias).float().cpu().numpy()
        rows, matrix, vector = (t.float().cpu().numpy() for t in (x, weight, bias))
        np.testing.assert_allclose(out, rows @ matrix.T + vector, rtol=1e-2, atol=1e-1)
    assert set(ledger.products) == {"BIAS"}


def test_a_row_that_is_added_to_a_product_is_its_bias(ledger):
    bias, a, b = cuda(5).requires_grad_(), cuda(3, 4), cuda(4, 5).requires_grad_()
    dg.addmm(bias, a, b).sum().backward()
    assert ledger.products[0] == "BIAS"
    assert bias.grad.tolist() == [3.0] * 5
    np.testing.assert_allclose(b.grad.cpu().numpy(), a.cpu().numpy().sum(0)[:, None].repeat(5, 1))
    dg.addmm(bias, a, b, beta=2)
    assert ledger.products[-1] == "DEFAULT"


def test_transformer_layers_join_a_layer_with_its_relu(ledger):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).to("cuda")
    layer(cuda(2, 3, 8)).sum().backward()
    assert {"RELU_AUX_BIAS", "DRELU_BGRAD"} <= set(ledger.products)


@pytest.mark.parametrize("missing", ["BIAS", "RELU_AUX_BIAS", "DRELU_BGRAD", "BGRADB"])
def test_without_a_kernel_for_an_epilogue_the_results_are_the_same(ledger, missing, monkeypatch):
    monkeypatch.setattr(cublaslt, "refused_epilogues", {missing})
    products.check_chain("relu", "float32", PLACE, train=True)
    products.check_chain("relu", "float32", PLACE, train=False)
    assert missing not in ledger.products


def test_autocast_multiplies_in_16_bits_and_adds_gradients_in_float32(gemm, ledger):
    net = products.perceptron("relu").to("cuda")
    for p in net.parameters():
        p.grad = dg.zeros_like(p)
    held = [p.grad for p in net.parameters()]
    with dg.autocast("cuda", dtype=dg.bfloat16):
        out = net(cuda(4, 6))
    assert out.dtype is dg.bfloat16
    out.float().sum().backward()
    assert all(p.grad is g for p, g in zip(net.parameters(), held, strict=True))
    kinds = [(r.problem.kind, r.problem.out) for r in gemm._mine.recipes.values()]
    assert kinds.count(("bfloat16", "float32")) == 3  # the weights' gradients
    assert kinds.count(("bfloat16", "bfloat16")) == len(kinds) - 3
    assert "RELU_AUX_BIAS" in ledger.products
    gemm._mine.recipes.clear()
    for p in net.parameters():
        p.grad = None
    with dg.autocast("cuda", dtype=dg.bfloat16):
        out = net(cuda(4, 6))
    out.float().sum().backward()
    assert all(p.grad.dtype is dg.float32 for p in net.parameters())
    kinds = [(r.problem.kind, r.problem.out) for r in gemm._mine.recipes.values()]
    assert kinds.count(("bfloat16", "float32")) == 3


# ---------------------------------------------------------------------- gradients where they belong
@pytest.mark.usefixtures("either")
def test_gradients_are_added_where_they_lie():
    products.check_kept_gradients(PLACE)


def _bytes_copied(monkeypatch, place):
    """Return the bytes of gradients that were copied into buckets, and the gradients."""
    copied, plain = [], engine.accumulate_array

    def counting(leaf, g, owned):
        copied.append(g.nbytes)
        plain(leaf, g, owned)

    monkeypatch.setattr(engine, "accumulate_array", counting)

    def body(group):
        dg.manual_seed(0)
        net = products.perceptron("relu").to(place)
        model = DistributedDataParallel(net, process_group=group)
        x = dg.randn(32, 6).to(place)
        with model.no_sync():
            (model(x) ** 2).sum().backward()
        (model(x) ** 2).sum().backward()
        model.zero_grad()
        (model(x) ** 2).sum().backward()
        return [p.grad.cpu().numpy() for p in net.parameters()]

    gradients = run_ranks(1, body)[0]
    monkeypatch.setattr(engine, "accumulate_array", plain)
    return sum(copied), gradients


BIASES = 4 * (20 + 13 + 5)
WEIGHTS = 4 * (6 * 20 + 20 * 13 + 13 * 5)


def test_the_host_writes_weight_gradients_into_buckets_with_the_same_bits(monkeypatch):
    copied, got = _bytes_copied(monkeypatch, "cpu")
    names = table["linear"].node.pull.__globals__
    monkeypatch.setitem(names, "_into", lambda node, g: None)
    before, want = _bytes_copied(monkeypatch, "cpu")
    # Of three backwards two write first; the one that adds is as it was.
    assert (before, copied) == (3 * (BIASES + WEIGHTS), 3 * BIASES + WEIGHTS)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_parameter_of_several_nodes_gets_the_sum_with_the_same_bits(monkeypatch):
    def made():
        weight = dg.from_numpy(np.random.default_rng(0).standard_normal((8, 8))).requires_grad_()
        weight._grad_buffer, seen = dg.full((8, 8), np.nan, dtype=dg.float64), []
        weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.sum().item()))
        rows = nn.functional.embedding(dg.tensor([1, 1, 3]), weight)
        out = nn.functional.linear(nn.functional.linear(rows, weight), weight)
        (out * out).sum().backward()
        assert len(seen) == 1
        assert seen[0] == weight.grad.sum().item()
        assert weight.grad is weight._grad_buffer
        return weight.grad.numpy()

    got = made()
    monkeypatch.setitem(table["linear"].node.pull.__globals__, "_into", lambda node, g: None)
    np.testing.assert_array_equal(got, made())


def test_a_device_adds_weight_gradients_to_buckets_by_the_product(ledger, monkeypatch):
    copied, got = _bytes_copied(monkeypatch, "cuda")
    assert copied == 3 * BIASES
    _, want = _bytes_copied(monkeypatch, "cpu")
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_anomaly_mode_still_sees_every_gradient():
    weight = dg.ones(2, 2, requires_grad=True)
    weight._grad_buffer = dg.zeros(2, 2)
    x = dg.full((1, 2), float("nan"))
    loss = nn.functional.linear(x, weight).sum()
    dg.autograd.set_detect_anomaly(True)
    try:
        with pytest.raises(RuntimeError, match="nan values"):
            loss.backward()
    finally:
        dg.autograd.set_detect_anomaly(False)


def test_backwards_of_several_threads_add_up():
    weight = dg.ones(8, 8, requires_grad=True)
    weight._grad_buffer = dg.zeros(8, 8)
    x = dg.ones(4, 8)
    threads = [
        threading.Thread(target=lambda: nn.functional.linear(x, weight).sum().backward())
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert weight.grad.tolist() == [[32.0] * 8] * 8


# ---------------------------------------------------------------------- streams and graphs
def test_each_stream_has_a_workspace_of_its_own(gemm, ledger):
    import cupy

    x = cuda(4, 4)
    x @ x
    side = cupy.cuda.Stream(non_blocking=True)
    ready = cupy.cuda.get_current_stream().record()
    with side:
        side.wait_event(ready)
        y = x @ x
        y @ y
        with gemm.lt.own_workspace() as held:
            y @ y
        done = side.record()
    cupy.cuda.get_current_stream().wait_event(done)
    assert len(gemm.lt._mine.workspaces) == 2
    assert [w.nbytes for w in held] == [gemm.lt.WORKSPACE]
    assert not ledger.hazards


def _captured(step):
    import cupy

    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc), stream:
        step()
        stream.begin_capture()
        try:
            result = step()
        finally:
            graph = stream.end_capture()
    return graph, result, stream


def test_products_can_be_captured_and_replayed(ledger):
    x, w = dg.zeros(2, 3, device="cuda"), dg.ones(4, 3, device="cuda")
    bias = dg.ones(4, device="cuda")
    sys.modules["cupy"].cuda.Device().synchronize()
    graph, result, stream = _captured(lambda: nn.functional.linear(x, w, bias))
    with stream:
        x.array[...] = 2
        graph.launch()
        assert result.tolist() == [[7.0] * 4] * 2


def test_without_cublaslt_a_capture_says_what_is_missing():
    with standin.installed(nvmath=False):
        x = dg.ones(2, 2, device="cuda")
        sys.modules["cupy"].cuda.Device().synchronize()
        with pytest.raises(MissingExtra, match="nvmath-python"):
            _captured(lambda: x @ x if _capturing() else x + x)


def _capturing():
    return sys.modules["cupy"].cuda.get_current_stream().is_capturing()


# ---------------------------------------------------------------------- what cuBLASLt refuses
def launch(gemm, change=None, *, epilogue="DEFAULT", vector=0, aux=0, **fields):
    """Plan and launch a 4×6 product of ones of inner length 8, changed by ``fields``."""
    import cupy

    lt = gemm.lt
    problem = lt.Problem(4, 6, 8, lt.Side(4), lt.Side(8), lt.Side(4), "float32", "float32",
                         epilogue=epilogue)._replace(**fields)  # fmt: skip
    library = lt.bindings()
    plan = lt.make_plan(library, problem, 0, vector, aux)
    a, b, d = (cupy.ones(64, problem.kind) for _ in range(3))
    places = [a.data.ptr, b.data.ptr, d.data.ptr, lt.scalar(1.0, "float32")[1],
              lt.scalar(0.0, "float32")[1], lt.workspace(0, 0).data.ptr, 0]  # fmt: skip
    if change is not None:
        change(places, plan)
    plan.launch(*places)
    return d.get()[:24]


def test_a_plan_computes_its_problem(gemm):
    assert launch(gemm).tolist() == [8.0] * 24


WRONG = {
    "leading dimension": {"a": (3, False, 0)},
    "batch that overlaps": {"batch": 2, "d": (4, False, 8)},
    "aux of odd length": {"epilogue": "GELU_AUX", "aux_ld": 4},
    "mask of odd length": {"epilogue": "RELU_AUX", "aux_ld": 8},
    "float64 with epilogue": {"epilogue": "RELU", "kind": "float64", "out": "float64"},
    "float32 into float16": {"out": "float16"},
    "GELU backward into float32": {
        "epilogue": "DGELU", "kind": "bfloat16", "out": "float32", "aux_ld": 8
    },
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_the_stand_in_has_no_kernel_for_what_cublaslt_refuses(gemm, what):
    fields = dict(WRONG[what])
    for side in ("a", "d"):
        if side in fields:
            fields[side] = gemm.lt.Side(*fields[side])
    with pytest.raises(gemm.Unsupported):
        launch(gemm, **fields)


def _misaligned(places, plan):
    places[0] += 4


def _on_host(places, plan):
    places[2] = places[3]


def _scalars_elsewhere(places, plan):
    places[3] = places[0]


def _overlapping(places, plan):
    places[2] = places[0]


def _closed(places, plan):
    plan.close()


@pytest.mark.parametrize(
    "change", [_misaligned, _on_host, _scalars_elsewhere, _overlapping, _closed]
)
def test_the_stand_in_refuses_launches_that_break_a_promise(gemm, change):
    with pytest.raises((cublaslt.cuBLASLtError, RuntimeError)):
        launch(gemm, change)


def test_the_stand_in_refuses_a_bias_that_is_less_aligned_than_it_was(gemm):
    import cupy

    room = cupy.ones(64, np.float32)

    def move(places, plan):
        plan.point(room.data.ptr + 2, 0)

    with pytest.raises(cublaslt.cuBLASLtError, match="aligned"):
        launch(gemm, move, epilogue="BIAS", vector=room.data.ptr)
    assert launch(gemm, epilogue="BIAS", vector=room.data.ptr).tolist() == [9.0] * 24


# ---------------------------------------------------------------------- the real bindings
REAL = """
import json, sys
import numpy as np
from nvmath.bindings import cublasLt as real
from distgrad.backend.cuda import lt
from distgrad.testing.standin import cublaslt as standin

for name in ("Epilogue", "MatmulDescAttribute", "MatrixLayoutAttribute",
             "MatmulPreferenceAttribute", "PointerMode"):
    for member in getattr(standin, name):
        assert int(getattr(real, name)[member.name]) == member, member
for key in standin.MatmulDescAttribute:
    kind = real.get_matmul_desc_attribute_dtype(real.MatmulDescAttribute[key.name])
    assert np.dtype(kind).itemsize == np.dtype(standin._width(key)).itemsize, key
for key in standin.MatrixLayoutAttribute:
    kind = real.get_matrix_layout_attribute_dtype(real.MatrixLayoutAttribute[key.name])
    assert np.dtype(kind) == np.dtype(standin._width(key)), key
for key in standin.MatmulPreferenceAttribute:
    kind = real.get_matmul_preference_attribute_dtype(real.MatmulPreferenceAttribute[key.name])
    assert np.dtype(kind) == np.dtype(standin._width(key)), key
assert real.matmul_heuristic_result_dtype.itemsize == 96  # and the algorithm comes first
assert real.matmul_heuristic_result_dtype.fields["algo"][1] == 0

def read(get, handle, key, kind):
    value, size = np.zeros(1, kind), np.zeros(1, np.uint64)
    get(handle, int(key), value.ctypes.data, value.nbytes, size.ctypes.data)
    return int(value[0])

library = lt.bindings()
assert library is real, library
count = 0
for kind in lt.TYPES:
    for epilogue in ("DEFAULT", "BIAS", "RELU_AUX_BIAS", "GELU_AUX_BIAS", "DRELU_BGRAD",
                     "DGELU_BGRAD", "BGRADB"):
        for turned in (False, True):
            problem = lt.Problem(
                256, 128, 64, lt.Side(64 if turned else 256, turned, 64 * 256),
                lt.Side(64, False, 0), lt.Side(256, False, 256 * 128), kind, kind, batch=3,
                epilogue=epilogue, aux_ld=256 if "AUX" in epilogue or epilogue[0] == "D" else 0)
            plan = lt.Plan(library, problem)
            plan.point(4096, 8192)
            desc, get = plan._desc, real.matmul_desc_get_attribute
            names = real.MatmulDescAttribute
            assert read(get, desc, names.TRANSA, np.int32) == turned
            assert read(get, desc, names.TRANSB, np.int32) == 0
            assert read(get, desc, names.EPILOGUE, np.uint32) == int(real.Epilogue[epilogue])
            assert read(get, desc, names.EPILOGUE_AUX_LD, np.int64) == problem.aux_ld
            assert read(get, desc, names.BIAS_POINTER, np.uint64) == 4096
            assert read(get, desc, names.EPILOGUE_AUX_POINTER, np.uint64) == 8192
            assert read(get, desc, names.COMPUTE_TYPE, np.int32) == lt.compute_type(problem)
            assert read(get, desc, names.SCALE_TYPE, np.int32) == lt.TYPES[lt.scale_type(kind)]
            get, names = real.matrix_layout_get_attribute, real.MatrixLayoutAttribute
            for layout, side in zip(plan._layouts, (problem.a, problem.b, problem.d)):
                assert read(get, layout, names.LD, np.int64) == side.ld
                assert read(get, layout, names.BATCH_COUNT, np.int32) == 3
                assert read(get, layout, names.STRIDED_BATCH_OFFSET, np.int64) == side.stride
                assert read(get, layout, names.TYPE, np.uint32) == lt.TYPES[kind]
            plan.close()
            count += 1
print(count)
"""


@pytest.mark.gpu_libraries
def test_the_real_library_takes_our_descriptors(tmp_path):
    pytest.importorskip("nvmath", reason="nvmath-python is not installed")
    pytest.importorskip("cupy", reason="CuPy is not installed")
    if no_gpu.missing():
        pytest.skip(no_gpu.missing())
    environment = no_gpu.environment(tmp_path)
    made = subprocess.run(
        [sys.executable, "-c", REAL], env=environment, capture_output=True, text=True, timeout=120
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.split() == [str(6 * 7 * 2)]
