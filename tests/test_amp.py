"""autocast and GradScaler do what PyTorch's do."""

import threading
import warnings

import pytest

import distgrad as dg
from distgrad.amp.state import _stubs, state
from distgrad.nn import functional as F

CALLS = {
    "matmul": lambda lib, x, h: x @ x,
    "mm": lambda lib, x, h: lib.mm(x, h),
    "linear": lambda lib, x, h: lib.nn.functional.linear(x, x),
    "conv": lambda lib, x, h: lib.nn.functional.conv1d(x[None], x[:, :, None]),
    "einsum": lambda lib, x, h: lib.einsum("ij,jk->ik", x, x),
    "add": lambda lib, x, h: x + h,
    "exp": lambda lib, x, h: lib.exp(h),
    "softmax": lambda lib, x, h: lib.softmax(h, 0),
    "layer_norm": lambda lib, x, h: lib.nn.functional.layer_norm(h, (4,)),
    "mse": lambda lib, x, h: lib.nn.functional.mse_loss(h, h),
    "cross_entropy": lambda lib, x, h: lib.nn.functional.cross_entropy(h, h.argmax(1)),
    "prod": lambda lib, x, h: h.prod(),
    "trace": lambda lib, x, h: lib.trace(h),
    "cat": lambda lib, x, h: lib.cat([x, h]),
    "stack": lambda lib, x, h: lib.stack([h, h]),
    "double": lambda lib, x, h: x.double() @ x.double(),
    "inv": lambda lib, x, h: lib.linalg.inv(h),
    "attention": lambda lib, x, h: lib.nn.functional.scaled_dot_product_attention(
        x[None], x[None], x[None]
    ),
    "sum": lambda lib, x, h: h.sum(),
    "in place": lambda lib, x, h: x.clone().add_(h),
}


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", CALLS)
def test_results_have_pytorchs_dtype(name: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    found = []
    for lib in (dg, torch):
        x = lib.eye(4) + 0.25
        with lib.autocast("cpu", dtype=getattr(lib, dtype)):
            out = CALLS[name](lib, x, x.to(getattr(lib, dtype)))
        found.append((str(out.dtype).split(".")[1], tuple(out.shape)))
    assert found[0] == found[1]


def test_functions_stay_who_they_are_and_get_their_code_back() -> None:
    before = [function.__code__ for function, _, _ in _stubs()]
    x = dg.ones(2, 2)
    with dg.autocast("cpu"):
        assert (x @ x).dtype is dg.bfloat16
        with dg.autocast("cpu", enabled=False):
            assert (x @ x).dtype is dg.float32
        with dg.autocast("cpu", dtype=dg.float16):
            assert F.linear(x, x).dtype is dg.float16
        assert dg.mm(x, x).dtype is dg.bfloat16
    assert [function.__code__ for function, _, _ in _stubs()] == before
    assert (x @ x).dtype is dg.float32


def test_other_threads_are_left_alone() -> None:
    x, found = dg.ones(2, 2), []
    with dg.autocast("cpu"):
        thread = threading.Thread(target=lambda: found.append((x @ x).dtype))
        thread.start()
        thread.join()
    assert found == [dg.float32]


def test_a_parameter_is_converted_once_in_the_outermost_block() -> None:
    w = dg.ones(2, 2, requires_grad=True)
    with dg.autocast("cpu"):
        a = dg.mm(w, w)
        with dg.autocast("cpu"):
            b = dg.mm(w, w)
        kept = list(state.cache.values())
        assert len(kept) == 1 and kept[0][0] is w and kept[0][1].dtype is dg.bfloat16
    assert not state.cache
    (a + b).sum().backward()
    assert w.grad is not None and w.grad.dtype is dg.float32
    assert w.grad.tolist() == [[8.0, 8.0], [8.0, 8.0]]
    with dg.autocast("cpu", cache_enabled=False):
        dg.mm(w, w)
        assert not state.cache


def test_as_a_decorator_and_its_questions() -> None:
    @dg.autocast("cpu", dtype=dg.float16)
    def product(x: dg.Tensor) -> dg.Tensor:
        assert dg.is_autocast_enabled("cpu") and dg.is_autocast_cpu_enabled()
        assert dg.get_autocast_dtype("cpu") is dg.float16
        return x @ x

    assert product(dg.ones(2, 2)).dtype is dg.float16
    assert not dg.is_autocast_enabled("cpu")
    assert dg.get_autocast_cpu_dtype() is dg.bfloat16


def test_without_a_gpu_cuda_is_switched_off_with_a_warning() -> None:
    if dg.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.warns(UserWarning, match="CUDA is not available. Disabling"):
        context = dg.autocast("cuda")
    with context:
        assert not dg.is_autocast_enabled("cuda")
    with pytest.warns(UserWarning, match="GradScaler is enabled, but CUDA is not available"):
        scaler = dg.amp.GradScaler()
    assert not scaler.is_enabled() and scaler.get_scale() == 1.0 and scaler.state_dict() == {}
    with pytest.warns(FutureWarning, match=r"torch.amp.GradScaler\('cuda', args...\)"):
        dg.cuda.amp.GradScaler(enabled=False)
    with pytest.raises(ValueError, match="unsupported autocast device_type 'tpu'"):
        dg.autocast("tpu")


def test_custom_functions_follow_their_forward() -> None:
    class Product(dg.autograd.Function):
        @staticmethod
        @dg.amp.custom_fwd(device_type="cpu")
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x)
            return x @ x

        @staticmethod
        @dg.amp.custom_bwd(device_type="cpu")
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            (x,) = ctx.saved_tensors
            seen.append((grad @ x).dtype)
            return (grad @ x.mT + x.mT @ grad).float()

    seen: list[dg.dtype] = []
    x = dg.ones(2, 2, requires_grad=True)
    with dg.autocast("cpu"):
        out = Product.apply(x)
    assert out.dtype is dg.bfloat16
    out.sum().backward()
    assert seen == [dg.bfloat16]

    class Exact(dg.autograd.Function):
        @staticmethod
        @dg.amp.custom_fwd(device_type="cpu", cast_inputs=dg.float32)
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x @ x

        @staticmethod
        @dg.amp.custom_bwd(device_type="cpu")
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            return grad

    with dg.autocast("cpu"):
        assert Exact.apply(dg.ones(2, 2).bfloat16()).dtype is dg.float32


# ---------------------------------------------------------------------- GradScaler
def steps(lib, losses: list[float]) -> list[tuple[float, float]]:  # type: ignore[no-untyped-def]
    """Return scale and weight after each step, where a factor of the loss may be infinite."""
    w = lib.ones(1, requires_grad=True)
    optimizer = lib.optim.SGD([w], lr=0.5)
    scaler = lib.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    found = []
    for factor in losses:
        optimizer.zero_grad()
        scaler.scale((w * factor).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        found.append((scaler.get_scale(), w.item()))
    state = scaler.state_dict()
    scaler.load_state_dict(state)
    assert state == scaler.state_dict()
    return [*found, tuple(sorted(state.items()))]  # type: ignore[list-item]


@pytest.mark.torch
def test_the_scale_grows_and_shrinks_as_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    losses = [1.0, 2.0, float("inf"), 1.0, float("nan"), 0.5, 0.5, 0.5]
    assert steps(dg, losses) == steps(torch, losses)


def test_calls_out_of_order_are_refused() -> None:
    w = dg.ones(1, requires_grad=True)
    optimizer = dg.optim.SGD([w], lr=0.5)
    scaler = dg.amp.GradScaler("cpu")
    with pytest.raises(AssertionError, match="No inf checks were recorded prior to update"):
        scaler.update()
    scaler.scale(w.sum()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called on this optimizer"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="step\\(\\) has already been called"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="being called after step"):
        scaler.unscale_(optimizer)
    scaler.update(new_scale=2.0)
    assert scaler.get_scale() == 2.0
    with pytest.raises(RuntimeError, match="source state dict is empty"):
        scaler.load_state_dict({})
    half = dg.ones(1, dtype=dg.float16, requires_grad=True)
    half.sum().backward()
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        scaler.unscale_(dg.optim.SGD([half], lr=0.5))
    assert [t.item() for t in scaler.scale([w, w])] == [w.item() * 2] * 2


def test_a_disabled_scaler_only_steps() -> None:
    w = dg.ones(1, requires_grad=True)
    optimizer = dg.optim.SGD([w], lr=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaler = dg.amp.GradScaler("cuda", enabled=False)
    loss = w.sum()
    assert scaler.scale(loss) is loss
    loss.backward()
    scaler.step(optimizer)
    scaler.update()
    assert w.item() == 0.5
