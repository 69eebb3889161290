"""Convolution and attention by cuDNN: numbers on the stand-in, plans by cuDNN itself."""

import json
import pickle
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest

import distgrad as dg
from distgrad.backend.device import device
from distgrad.nn import functional as F
from distgrad.testing import device_cudnn, no_gpu, standin

PLACE = device("cuda:0")


@pytest.fixture(scope="module", autouse=True)
def _standin():
    with standin.installed():
        dg.ones(1, device="cuda")
        yield


@pytest.fixture(autouse=True)
def plans():
    """Starts each test without plans; gives the count of those made and found."""
    from distgrad.backend.cuda import cudnn

    cudnn._plans.clear()
    cudnn.counts.made = cudnn.counts.found = 0
    standin.ledger.refused.clear()
    standin.ledger.launches.clear()
    yield cudnn.counts
    assert not standin.ledger.refused


def runs():
    return standin.ledger.launches.count("cudnn")


# ---------------------------------------------------------------------- convolution
@pytest.mark.parametrize("dtype", device_cudnn.DTYPES)
@pytest.mark.parametrize("name", device_cudnn.CONVOLUTIONS)
def test_convolutions_give_the_hosts_results(name, dtype):
    device_cudnn.check_convolution(name, dtype, PLACE)
    assert runs() == 3  # forward, and two gradients


@pytest.mark.parametrize("dtype", device_cudnn.DTYPES)
@pytest.mark.parametrize("name", device_cudnn.CONVOLUTIONS)
def test_convolutions_keep_channels_last(name, dtype):
    tensors = device_cudnn.check_convolution(name, dtype, PLACE, dg.channels_last)
    if tensors["result"].ndim == 4:
        assert tensors["result"].is_contiguous(memory_format=dg.channels_last)


# ---------------------------------------------------------------------- attention
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("dtype", device_cudnn.DTYPES)
@pytest.mark.parametrize("name", device_cudnn.ATTENTIONS)
def test_attention_gives_the_hosts_results(name, dtype, packed):
    device_cudnn.check_attention(name, dtype, PLACE, packed=packed)
    wide = dtype == "float32" or name == "odd width"
    assert runs() == (0 if wide else 1 if name == "bias of keys" else 2)


def test_rows_that_may_look_nowhere_are_zero_and_get_no_gradient():
    device_cudnn.check_closed_rows(PLACE)
    assert runs() == 4


def test_packed_heads_are_read_where_they_lie():
    from distgrad.backend.cuda import cudnn

    qkv = dg.randn(2, 7, 3, 4, 16, device="cuda").half().requires_grad_()
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert out.transpose(1, 2).is_contiguous()  # so the heads are joined without a copy
    out.float().square().sum().backward()
    (forward, backward) = (key[1] for key in cudnn._plans)
    assert forward.q.strides == backward.k.strides == (7 * 192, 16, 192, 1) and backward.backward
    host = qkv.detach().float().cpu().requires_grad_()
    q, k, v = (x.transpose(1, 2) for x in host.unbind(2))
    F.scaled_dot_product_attention(q, k, v, is_causal=True).square().sum().backward()
    np.testing.assert_allclose(qkv.grad.float().cpu(), host.grad, rtol=0, atol=0.02)


def test_attention_is_not_fused_where_the_program_asks_for_math():
    from distgrad.nn.attention import SDPBackend, sdpa_kernel

    q = dg.ones(1, 1, 3, 8, device="cuda").half()
    with sdpa_kernel(SDPBackend.MATH):
        F.scaled_dot_product_attention(q, q, q)
    assert not runs() and dg.backends.cuda.flash_sdp_enabled()
    with dg.backends.cuda.sdp_kernel(enable_flash=False, enable_mem_efficient=False):
        F.scaled_dot_product_attention(q, q, q)
    assert runs() == 1


def dropped(q, v, p=0.5, **options):
    return F.scaled_dot_product_attention(q, q, v, dropout_p=p, **options)


def test_dropout_of_attention_draws_the_same_again_in_backward():
    device_cudnn.check_dropout(PLACE)
    assert runs() == 3


def test_dropout_of_attention_follows_the_seed():
    q = dg.ones(1, 1, 16, 8, device="cuda").half()
    draws = []
    for seed in (1, 1, 2):
        dg.manual_seed(seed)
        draws += [dropped(q, dg.eye(16, device="cuda").half()[None, None]).tolist() for _ in "ab"]
    assert draws[:2] == draws[2:4] and draws[0] != draws[1] and draws[0] != draws[4]


def test_dropout_that_cudnn_could_not_repeat_in_backward_is_left_to_others():
    q = dg.randn(2, 2, 8, 8, device="cuda").half()
    v = q.clone().requires_grad_()
    bias = dg.randn(1, 8, device="cuda").half().requires_grad_()  # its gradient is a sum of rows
    out = dropped(q, v, attn_mask=bias)
    (out * q).sum().backward()
    assert not runs() and bias.grad.shape == (1, 8)
    one, other = (float((a.float() * b.float()).sum()) for a, b in ((out, q), (v, v.grad)))
    assert abs(one - other) < 0.05


def test_draws_of_one_graph_differ():
    q, identity = dg.ones(1, 1, 16, 8, device="cuda").half(), dg.eye(16, device="cuda").half()
    side = dg.cuda.Stream()
    side.wait_stream(dg.cuda.current_stream())
    with dg.cuda.stream(side):
        dropped(q, identity[None, None])
    dg.cuda.current_stream().wait_stream(side)
    graph = dg.cuda.CUDAGraph()
    with dg.cuda.graph(graph):
        outs = [dropped(q, identity[None, None]) for _ in range(12)]  # seeds beyond 64 bits
    graph.replay()
    draws = [str(out.tolist()) for out in outs]
    assert len(set(draws)) == 12


def test_dropout_of_attention_outside_cudnn_is_the_same_in_all_derivatives():
    dg.manual_seed(0)
    q = dg.randn(2, 5, 6, device="cuda", requires_grad=True)
    out = dropped(q, q, 0.3)
    (first,) = dg.autograd.grad(out.square().sum(), q, create_graph=True)
    first.square().sum().backward()
    assert q.grad.isfinite().all() and not runs()
    half = q.detach().half()[:, None, :, :].expand(2, 1, 5, 6).contiguous()
    wide = dg.cat([half, half[..., :2]], -1).requires_grad_()
    loss = dropped(wide, wide).float().square().sum()
    with pytest.raises(RuntimeError, match="first derivatives only; use float32"):
        dg.autograd.grad(loss, wide, create_graph=True)


# ---------------------------------------------------------------------- plans
def step(x, w):
    x.grad = w.grad = None
    F.conv2d(x, w, padding=1).sum().backward()


def images(*shape, dtype=dg.float16):
    return dg.ones(*shape, dtype=dtype, device="cuda", requires_grad=True)


def test_a_plan_is_made_once_for_each_shape(plans):
    x, w = images(2, 8, 6, 6), images(8, 8, 3, 3)
    for _ in range(3):
        step(x, w)
    assert (plans.made, plans.found) == (3, 6)
    step(images(1, 8, 6, 6), w)
    assert (plans.made, plans.found) == (6, 6)


def test_a_step_neither_waits_nor_copies_from_the_host():
    x, w = images(2, 8, 6, 6), images(8, 8, 3, 3)
    q = images(2, 2, 5, 8)
    mask = dg.ones(5, 5, dtype=dg.bool, device="cuda").tril()
    step(x, w)
    uploads = standin.ledger.uploads
    with standin.no_syncs():
        step(x, w)
        F.scaled_dot_product_attention(q, q, q, mask).sum().backward()
    assert standin.ledger.uploads == uploads


def test_work_goes_to_the_current_stream():
    x, w = images(2, 8, 6, 6), images(8, 8, 3, 3)
    dg.cuda.synchronize()
    side = dg.cuda.Stream()
    side.wait_stream(dg.cuda.current_stream())
    with dg.cuda.stream(side):
        step(x, w)
        assert x.grad.shape == x.shape
    dg.cuda.current_stream().wait_stream(side)
    assert x.grad.sum().item() > 0 and not standin.ledger.hazards


def test_a_graph_repeats_convolution_and_attention_with_new_dropout():
    x, w = images(2, 8, 6, 6), images(8, 8, 3, 3)

    def run(p):
        w.grad = None
        y = F.conv2d(x, w, padding=1).flatten(2).transpose(1, 2)[:, None]
        out = F.scaled_dot_product_attention(y, y, y, dropout_p=p)
        out.float().sum().backward()
        return out

    for p in (0.0, 0.5):
        side = dg.cuda.Stream()
        side.wait_stream(dg.cuda.current_stream())
        with dg.cuda.stream(side):
            for _ in range(3):
                eager = run(p)
        dg.cuda.current_stream().wait_stream(side)
        graph = dg.cuda.CUDAGraph()
        w.grad = None
        with dg.cuda.graph(graph):
            out = run(p)
        seen = []
        for _ in range(3):
            graph.replay()
            seen.append((out.tolist(), w.grad.tolist()))
        if not p:
            assert seen[0] == seen[1] == (eager.tolist(), seen[2][1])
        else:
            assert seen[0] != seen[1] != seen[2]


def test_the_fastest_candidate_is_chosen_where_the_program_asks(plans):
    with dg.backends.cudnn.flags(enabled=True, benchmark=True):
        x, w = images(2, 8, 6, 6), images(8, 8, 3, 3)
        step(x, w)
        first = runs()
        assert first == 3 * (2 * 4 + 1)  # one candidate of three is left out for its workspace
        step(x, w)
        assert runs() == first + 3 and plans.made == 3


def test_switches_are_part_of_what_is_planned():
    from distgrad.backend.cuda import cudnn

    switches = dg.backends.cudnn
    assert switches.is_available() and switches.version() == 91900 and switches.enabled
    x, w = images(1, 4, 5, 5, dtype=dg.float32), images(4, 4, 3, 3, dtype=dg.float32)
    try:
        switches.allow_tf32 = False
        step(x, w)
        dg.use_deterministic_algorithms(True)
        step(x, w)
        switches.enabled = False
        step(x, w)
    finally:
        switches.enabled = switches.allow_tf32 = True
        dg.use_deterministic_algorithms(False)
    assert runs() == 6
    asked = {key[1].wishes for key in cudnn._plans}
    assert asked == {cudnn.Wishes(False, False, 0), cudnn.Wishes(False, True, 0)}
    notes = {n.name for key in cudnn._plans for n in cudnn._unwanted(key[1])}
    assert notes == {"TENSOR_CORE", "NONDETERMINISTIC", "DOWN_CONVERT_INPUTS"}


def test_compiled_plans_are_kept_on_disk(tmp_path, monkeypatch, plans):
    from distgrad.backend.cuda import cudnn
    from distgrad.testing.standin import cudnn as library

    monkeypatch.setattr(library, "stored", [])
    monkeypatch.setenv("DISTGRAD_PLAN_FOLDER", str(tmp_path / "plans"))
    q = images(2, 2, 5, 8)
    want = F.scaled_dot_product_attention(q, q, q).tolist()
    (file,) = (tmp_path / "plans").iterdir()
    counted = []
    for change in (lambda: None, lambda: file.write_text("half"), lambda: file.write_text("")):
        change()
        cudnn._plans.clear()
        plans.made = plans.read = 0
        assert F.scaled_dot_product_attention(q, q, q).tolist() == want
        counted.append((plans.made, plans.read))
    assert counted == [(0, 1), (1, 0), (1, 0)]
    assert len(list((tmp_path / "plans").iterdir())) == 1


def test_without_the_frontend_cupy_computes():
    with standin.installed(cudnn=False):
        assert not dg.backends.cudnn.is_available() and dg.backends.cudnn.version() is None
        device_cudnn.check_convolution("padded", "float32", PLACE)
        device_cudnn.check_attention("causal", "bfloat16", PLACE)
        assert not runs()


def test_what_cudnn_refuses_is_named():
    from distgrad.backend.cuda import cudnn

    x = images(1, 8, 4, 4)
    plan = cudnn.Plan.__new__(cudnn.Plan)

    class Graph:
        def execute(self, *args, **options):
            raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")

    plan._graph, plan._choice, plan._workspace, plan._untried = Graph(), -1, 0, 0
    with pytest.raises(RuntimeError, match=r"cuDNN 91900: CUDNN_STATUS.*enabled = False"):
        plan.run(x.array)


# ---------------------------------------------------------------------- channels last
class Block(dg.nn.Module):
    """A residual block, with what usually follows it."""

    def __init__(self):
        super().__init__()
        nn = dg.nn
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.one = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.two = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.pool(F.relu(self.norms[0](self.stem(x))))
        y = self.two(F.relu(self.norms[1](self.one(x))))
        x = F.relu(self.norms[2](y) + x)
        assert not x.is_cuda or x.is_contiguous(memory_format=dg.channels_last)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.parametrize("dtype", [dg.float32, dg.float16])
def test_a_network_that_was_moved_to_channels_last_copies_no_activation(dtype, monkeypatch):
    from distgrad.backend.cuda import conv

    dg.manual_seed(0)
    host = Block()
    net = Block()
    net.load_state_dict(host.state_dict())
    net = net.to("cuda", dtype).to(memory_format=dg.channels_last)
    assert net.one.weight.is_contiguous(memory_format=dg.channels_last)
    x = dg.randn(2, 3, 8, 8)
    copies = []
    last = conv._last

    def counted(x, more=(), channels=0):
        out = last(x, more, channels)
        copies.extend([x.shape] if out is not x else [])
        return out

    monkeypatch.setattr(conv, "_last", counted)
    moved = x.to("cuda", dtype).to(memory_format=dg.channels_last)
    loss = net(moved).float().square().sum()
    loss.backward()
    grown = [s for s in copies if s[1] == 3]  # three channels become eight, and three again
    assert copies == grown and len(grown) == (4 if dtype is dg.float16 else 0)
    expected = host(x).square().sum()
    expected.backward()
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype is dg.float32 else {"rtol": 0.1, "atol": 0.05}
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=near["rtol"])
    for (name, p), q in zip(net.named_parameters(), host.parameters(), strict=True):
        got, want = p.grad.float().cpu().numpy(), q.grad.numpy()
        np.testing.assert_allclose(got, want, **near, err_msg=name)


@pytest.mark.parametrize(
    "call",
    [lambda x: x + 1, lambda x: x * x, lambda x: x.exp(), F.relu, lambda x: x.clamp(0, 1),
     lambda x: x + dg.ones(8, 1, 1, device="cuda"), lambda x: x > 0, F.sigmoid, F.silu, F.gelu,
     lambda x: dg.where(x > 0, x, 0.5), lambda x: x / x.new_ones(1, 8, 1, 1), F.leaky_relu,
     lambda x: x.half().float(), lambda x: x.clone(), lambda x: dg.zeros_like(x),
     lambda x: 2.0 - x],
)  # fmt: skip
def test_elementwise_functions_keep_channels_last(call):
    x = dg.randn(2, 8, 4, 4).to(memory_format=dg.channels_last)
    want, got = call(x.cuda()), None
    got = call(x.cuda().contiguous(memory_format=dg.channels_last))
    assert got.is_contiguous(memory_format=dg.channels_last)
    assert want.shape == got.shape


def test_memory_formats_are_kept_between_devices():
    x = dg.randn(2, 8, 4, 4)
    last = x.to("cuda", memory_format=dg.channels_last)
    assert last.is_contiguous(memory_format=dg.channels_last) and not last.is_contiguous()
    assert last.stride() == (128, 1, 32, 8)
    assert last.cpu().is_contiguous(memory_format=dg.channels_last)
    assert x.contiguous(memory_format=dg.channels_last).cuda().stride() == (128, 1, 32, 8)
    assert last.contiguous().stride() == (128, 16, 4, 1)
    assert dg.equal(last.cpu(), x)
    five = dg.randn(1, 2, 3, 4, 5, device="cuda").to(memory_format=dg.channels_last_3d)
    assert five.is_contiguous(memory_format=dg.channels_last_3d)
    with pytest.raises(RuntimeError, match="required rank 4 tensor to use channels_last"):
        dg.ones(3, device="cuda").to(memory_format=dg.channels_last)


# ---------------------------------------------------------------------- cuDNN itself, without a GPU
def real_shapes():
    """Return descriptions of layers as networks have them, by name."""
    from distgrad.backend.cuda.attention import Attention
    from distgrad.backend.cuda.conv import Convolution
    from distgrad.backend.cuda.cudnn import Place, Wishes

    found, plain = {}, Wishes(True, False, 0)
    layers = {  # batch, channels, filters, size, kernel, stride, groups
        "stem": (64, 8, 64, 224, 7, 2, 1),
        "3x3": (64, 64, 64, 56, 3, 1, 1),
        "3x3, strided": (64, 128, 128, 56, 3, 2, 1),
        "1x1": (64, 256, 64, 56, 1, 1, 1),
        "1x1, strided": (64, 1024, 2048, 14, 1, 2, 1),
        "depthwise": (64, 96, 96, 112, 3, 1, 96),
        "many channels": (64, 512, 512, 7, 3, 1, 1),
    }
    for name, (n, c, o, size, kernel, stride, groups) in layers.items():
        pad, places = kernel // 2, (size - 1) // stride + 1
        shapes = (n, c, size, size), (o, c // groups, kernel, kernel), (n, o, places, places)
        for operation in ("fprop", "dgrad", "wgrad"):
            for kind in ("float32", "float16", "bfloat16"):
                bias = operation == "fprop"
                found[f"{name}: {operation} {kind}"] = Convolution(
                    operation, *shapes, (stride,) * 2, (pad,) * 2, (1, 1), bias, kind, plain
                )
        strict = Wishes(False, True, 0)
        found[f"{name}: strict"] = found[f"{name}: fprop float32"]._replace(wishes=strict)
    shape = (8, 12, 1024, 64)
    qkv, out = Place(shape, (1024 * 2304, 64, 2304, 1)), Place(shape, (1024 * 768, 64, 768, 1))
    for p in (0.0, 0.1):
        gpt = Attention(
            False, qkv, qkv, qkv, out, None, None, False, 0.125, True, p, "bfloat16", plain
        )
        found[f"GPT-2, dropout {p}"] = gpt
        found[f"GPT-2, dropout {p}, backward"] = gpt._replace(backward=True, gradient=out)
    wishes = Wishes(True, True, 0)
    found["GPT-2, deterministic"] = gpt._replace(backward=True, gradient=out, wishes=wishes)
    return found


def refused_shapes():
    """Return descriptions of what the stand-in refuses, as cuDNN should."""
    from distgrad.backend.cuda.attention import Attention
    from distgrad.backend.cuda.cudnn import Place, Wishes

    def backward(width, kind):
        place = Place((2, 2, 8, width), (16 * width, 8 * width, width, 1))
        return Attention(
            True, *[place] * 5, None, False, 1.0, False, 0.0, kind, Wishes(True, False, 0)
        )

    return {"float32": backward(8, "float32"), "width 12": backward(12, "bfloat16")}


@pytest.mark.gpu_libraries
def test_cudnn_has_plans_for_what_the_package_asks(tmp_path):
    for wheel in ("nvidia-cudnn-frontend", "cupy-cuda13x", "nvidia-cudnn-cu13"):
        try:
            metadata.version(wheel)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{wheel} is not installed")
    if no_gpu.missing():
        pytest.skip(no_gpu.missing())
    from distgrad.backend.cuda import cudnn

    for name in device_cudnn.CONVOLUTIONS:
        for dtype in device_cudnn.DTYPES:
            device_cudnn.check_convolution(name, dtype, PLACE)
    for name in device_cudnn.ATTENTIONS:
        device_cudnn.check_attention(name, "bfloat16", PLACE, packed=True)
    asked = {f"{i}": key[1] for i, key in enumerate(cudnn._plans)}
    wanted, refused = asked | real_shapes(), refused_shapes()
    file = tmp_path / "descriptions"
    file.write_bytes(pickle.dumps(wanted | refused))
    command = [sys.executable, "-m", "distgrad.testing.no_gpu.cudnn_plans", str(file)]
    environment = no_gpu.environment(tmp_path)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    first, *lines = map(json.loads, filter(lambda s: s[:1] == "{", run.stdout.splitlines()))
    print(first, f"{len(lines)} plans, {sum(line['s'] for line in lines):.1f} s")
    found = {line["name"]: line["workspace"] for line in lines}
    assert run.returncode == 0 and set(found) == set(wanted) | set(refused), run.stderr[-2000:]
    assert {name for name, size in found.items() if size is None} == set(refused)
    limit = cudnn.WORKSPACE
    large = {n for n, size in found.items() if n not in refused and size > limit}
    assert not {n for n in large if wanted[n].workspace is not None}
    assert all(found[f"stem: fprop {kind}"] < 1000 for kind in ("float16", "bfloat16"))
