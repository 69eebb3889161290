"""What a training step costs on a GPU, counted on the stand-in: launches and bytes."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import distgrad as dg
from distgrad.autograd import holders
from distgrad.nn import functional as F
from distgrad.testing import standin
from distgrad.testing.standin import emulator

pytestmark = pytest.mark.skipif(not emulator.compiler(), reason="g++ is not installed")

_PATH = Path(__file__).parents[1] / "benchmarks" / "gpu_memory.py"
_SPEC = importlib.util.spec_from_file_location("gpu_memory", _PATH)
costs = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(costs)

CASES = [(name, narrow) for name in costs.WORKS for narrow in (False, True)]


@pytest.fixture(scope="module")
def tallies():
    return {case: costs.ours(*case) for case in CASES}


# Forward, backward, update.
LAUNCHES = {
    ("mlp", False): (7, 9, 2), ("mlp", True): (14, 12, 2),
    ("resnet", False): (68, 60, 2), ("resnet", True): (84, 73, 2),
    ("block", False): (11, 21, 2), ("block", True): (21, 24, 2),
    ("gpt", False): (51, 110, 3), ("gpt", True): (93, 123, 3),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_launches_of_a_step(tallies, case):
    counts = tallies[case].counts
    found = tuple(sum(counts[p].values()) for p in ("forward", "backward", "update"))
    assert all(n <= most for n, most in zip(found, LAUNCHES[case], strict=True)), (found, counts)


def _block_keeps(narrow):
    """Return the bytes that backward of a block of GPT-2 needs: what PyTorch keeps too."""
    rows, channels, heads = costs.TOKENS, costs.WIDTH, costs.HEADS
    wide, thin = 4, 2 if narrow else 4
    before_norms = 2 * wide  # the sums of the residual stream
    inputs = (1 + 1 + 1 + 4) * thin  # of the four linear layers
    others = (3 + 4) * thin  # queries, keys and values; what goes into GELU
    per_row = (before_norms + inputs + others) * channels + 4 * wide + heads * wide
    copies = (12 * channels * channels + 9 * channels) * thin if narrow else 0  # of parameters
    return rows * per_row + copies


def _gpt_keeps(narrow):
    rows, channels, words = costs.TOKENS, costs.WIDTH, costs.WORDS
    thin = 2 if narrow else 4
    logits, last = rows * words * thin, rows * (channels * (4 + thin) + 2 * 4)
    copy = words * channels * thin if narrow else 0
    losses = 3 * 4 * rows
    return costs.LAYERS * _block_keeps(narrow) + logits + last + copy + losses


@pytest.mark.parametrize("narrow", [False, True])
def test_a_block_keeps_what_its_backward_reads(tallies, narrow):
    kept = tallies["block", narrow].kept["forward"] - costs.TOKENS * costs.WIDTH * 4  # its result
    assert kept <= _block_keeps(narrow) * 1.01


@pytest.mark.parametrize("narrow", [False, True])
def test_gpt_keeps_its_logits_once_and_no_weights_of_attention(tallies, narrow):
    tally = tallies["gpt", narrow]
    assert tally.kept["forward"] <= _gpt_keeps(narrow) * 1.01
    logits = costs.TOKENS * costs.WORDS * (2 if narrow else 4)
    gradients = 4 * costs.WORDS * costs.WIDTH  # of the head, before the logits' memory is free
    slack = 1.5 * 4 * costs.TOKENS * costs.WIDTH * 4
    assert tally.peaks["backward"] <= _gpt_keeps(narrow) + gradients + slack
    assert tally.peaks["backward"] < _gpt_keeps(narrow) + gradients + logits


@pytest.mark.torch
@pytest.mark.parametrize("case", [c for c in CASES if c[0] != "block"], ids=str)
def test_a_step_takes_no_more_memory_than_pytorchs(tallies, case):
    pytest.importorskip("torch")
    mine, other = tallies[case], costs.theirs(*case)
    for phase in ("forward", "backward"):
        assert mine.peaks[phase] <= other.peaks[phase] * 1.002
    assert mine.kept["forward"] <= other.kept["forward"] * 1.005


@pytest.mark.torch
@pytest.mark.parametrize("case", [c for c in CASES if c[0] in ("mlp", "gpt")], ids=str)
def test_a_step_launches_hardly_more_than_pytorch_dispatches(tallies, case):
    pytest.importorskip("torch")
    mine, other = tallies[case], costs.theirs(*case)
    total = [sum(map(sum, (c.values() for c in t.counts.values()))) for t in (mine, other)]
    # An operation of PyTorch's may be several kernels: embeddings' gradients, attention in float32.
    apart = {"gpt": 14 + (5 * costs.LAYERS + 3 if not case[1] else 0)}.get(case[0], 0)
    assert total[0] - apart <= total[1]


# ---------------------------------------------------------------------- single operations
@pytest.fixture
def machine():
    with standin.installed() as ledger:
        dg.ones(1, device="cuda")
        yield ledger
        assert not ledger.hazards and not ledger.refused


def _launched(ledger, work):
    for names in (ledger.launches, ledger.products, ledger.kernels):
        names.clear()
    result = work()
    return result, [*ledger.launches, *ledger.products, *ledger.kernels]


def test_the_stand_in_counts_cupys_kernels(machine):
    import cupy

    x = cupy.ones((4, 6), "f4")
    for work, names in (
        (lambda: x + 1, ["add"]),
        (lambda: cupy.add(x, 1, out=x), ["add"]),
        (lambda: x.sum(0), ["sum"]),
        (lambda: x.astype("f8"), ["astype"]),
        (lambda: x.astype("f4", copy=False), []),
        (lambda: x.reshape(3, 8), []),
        (lambda: x.T.reshape(3, 8), ["reshape"]),
        (lambda: x[1:, ::2], []),
        (lambda: x.__setitem__(0, 3), ["__setitem__"]),
        (lambda: x.fill(2), ["fill"]),
        (lambda: cupy.empty_like(x), []),
        (lambda: cupy.zeros(3), ["zeros"]),
        (lambda: cupy.where(x > 0, x, 1), ["greater", "where"]),
    ):
        assert _launched(machine, work)[1] == names


@pytest.mark.parametrize("last", [False, True])
def test_relu_in_place_is_one_kernel_and_one_array(machine, last):
    x = dg.randn(2, 8, 4, 4, device="cuda")
    x = x.contiguous(memory_format=dg.channels_last) if last else x
    x.requires_grad_()
    y = x * 2.0
    address, version = y.data_ptr(), y._version
    z, names = _launched(machine, lambda: F.relu(y, inplace=True))
    assert names == ["relu"] and z is y and y.data_ptr() == address and y._version == version + 1
    assert y.grad_fn._held[0] is y.array
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.cpu().numpy(), 2.0 * (x.detach().cpu().numpy() > 0))


def test_a_change_after_relu_in_place_is_found_in_backward(machine):
    for change in (lambda t: t.add_(1.0), lambda t: t.relu_()):
        x = dg.randn(3, 4, device="cuda", requires_grad=True)
        y = (x * 2.0).relu_()
        change(y)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("name", ["silu", "mish", "leaky_relu", "hardtanh", "relu6", "elu"])
def test_what_needs_its_operand_in_backward_has_it_after_a_change_in_place(machine, name):
    values = np.random.default_rng(0).standard_normal((3, 5)).astype("f4") * 3
    found = []
    for place in ("cpu", "cuda"):
        x = dg.tensor(values, device=place).requires_grad_()
        y = x * 1.0
        assert getattr(F, name)(y, inplace=True) is y
        y.sum().backward()
        found.append((y.detach().cpu().numpy(), x.grad.cpu().numpy()))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-5, atol=1e-6)


def test_views_changed_in_place_keep_what_they_need(machine):
    x = dg.tensor([[-1.0, 2.0], [3.0, -4.0]], device="cuda", requires_grad=True)
    y = x * 1.0
    y[0].relu_()
    y[1].tanh_()
    y.add_(1.0)  # the nodes of the views do not hear of it
    y.sum().backward()
    want = [[0, 1], (1 - np.tanh([3.0, -4.0]) ** 2).tolist()]
    np.testing.assert_allclose(x.grad.cpu().numpy(), want, atol=1e-6)


@pytest.mark.parametrize("name", ["tanh_", "sigmoid_", "exp_"])
def test_results_in_place_are_saved_once(machine, name):
    x = dg.randn(3, 4, device="cuda", requires_grad=True)
    y = x * 1.0
    getattr(y, name)()
    assert any(value is y.array for value in y.grad_fn._held)
    y.sum().backward()
    host = x.detach().cpu().requires_grad_()
    getattr(host, name[:-1])().sum().backward()
    np.testing.assert_allclose(x.grad.cpu().numpy(), host.grad.numpy(), rtol=1e-5)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_gradients_that_meet_are_added_where_the_first_one_lies(machine, monkeypatch, last, held):
    monkeypatch.setattr(holders, "WORTH", 0)
    x = dg.randn(2, 8, 3, 3, device="cuda")
    x = x.contiguous(memory_format=dg.channels_last) if last else x
    x.requires_grad_()
    base = x * 1.0
    late = base.sin()  # of what is ready, the last one recorded runs first
    first = base.cos()
    kept, places = [], []

    def look(ins, outs):
        places.append(ins[0].data_ptr())
        if held:
            kept.append(ins[0])

    first.grad_fn.register_hook(look)
    base.register_hook(lambda g: places.append(g.data_ptr()))
    ((first + late) * 1.0).sum().backward()
    assert (places[0] == places[1]) is not held
    values = x.detach().cpu().numpy()
    want = np.cos(values) - np.sin(values)
    np.testing.assert_allclose(x.grad.cpu().numpy(), want, rtol=1e-5, atol=1e-6)
    if held:
        np.testing.assert_allclose(kept[0].cpu().numpy(), -np.sin(values), rtol=1e-6)


def test_a_gradient_that_somebody_holds_is_not_added_to(machine, monkeypatch):
    monkeypatch.setattr(holders, "WORTH", 0)
    x = dg.randn(8, 8, device="cuda", requires_grad=True)
    base, kept = x * 1.0, []
    a, b = base.clone(), base.clone()

    def keep(g):
        kept.append((g, g.cpu().numpy().copy()))

    a.register_hook(keep)
    b.register_hook(keep)
    ((a * 2.0) + (b * 5.0)).sum().backward()
    for tensor, values in kept:
        np.testing.assert_array_equal(tensor.cpu().numpy(), values)
    np.testing.assert_array_equal(x.grad.cpu().numpy(), np.full((8, 8), 7, "f4"))


def test_weights_of_convolutions_get_their_gradient_without_a_copy(machine):
    conv = dg.nn.Conv2d(8, 8, 3, bias=False).to("cuda").to(memory_format=dg.channels_last)
    x = dg.randn(2, 8, 6, 6, device="cuda").contiguous(memory_format=dg.channels_last)
    loss = conv(x).sum()
    names = _launched(machine, loss.backward)[1]
    assert "array" not in names and names.count("cudnn") == 1
    assert conv.weight.grad.is_contiguous(memory_format=dg.channels_last)


# ---------------------------------------------------------------------- cross entropy of 16 bits
LOSSES = [
    {}, {"reduction": "none"}, {"weight": True}, {"label_smoothing": 0.1, "ignore_index": 2},
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("options", LOSSES, ids=str)
def test_autocast_reads_logits_of_16_bits_as_they_are(machine, dtype, options):
    values = np.random.default_rng(0).standard_normal((6, 16)).astype("f4")
    labels = dg.arange(6, device="cuda")
    if "weight" in options:
        options = {"weight": dg.linspace(0.5, 2.0, 16).to("cuda")}
    kind, found = getattr(dg, dtype), []
    for autocast in (True, False):
        given = dg.tensor(values, device="cuda").to(kind).requires_grad_()
        with dg.autocast("cuda", dtype=kind, enabled=autocast):
            logits = given * 2.0
            logits = logits if autocast else logits.float()
            (loss, names) = _launched(
                machine, lambda logits=logits: F.cross_entropy(logits, labels, **options)
            )
        assert loss.dtype is dg.float32
        if autocast:
            assert not [n for n in names if n == "astype"]
        loss.sum().backward()
        found.append((loss.detach().cpu().numpy(), given.grad.float().cpu().numpy()))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    one_more_or_less = 2**-8 if dtype == "bfloat16" else 2**-11
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=2 * one_more_or_less, atol=1e-7)


def test_autocast_still_converts_targets_that_are_probabilities(machine):
    given = dg.randn(4, 5, device="cuda").bfloat16().requires_grad_()
    target = dg.softmax(dg.randn(4, 5, device="cuda"), 1)
    with dg.autocast("cuda", dtype=dg.bfloat16):
        loss = F.cross_entropy(given * 1.0, target)
    loss.backward()
    want = F.cross_entropy(given.detach().float(), target)
    assert loss.dtype is dg.float32 and given.grad.dtype is dg.bfloat16
    np.testing.assert_allclose(loss.item(), want.item(), rtol=1e-6)


def test_autocast_tells_wrong_arguments_of_the_loss(machine):
    given = dg.randn(4, 5, device="cuda").bfloat16()
    with dg.autocast("cuda", dtype=dg.bfloat16):
        for options in ({"label_smoothing": -0.5}, {"label_smoothing": 1.5}, {"reduction": "most"}):
            with pytest.raises(Exception, match=r"label_smoothing|most"):
                F.cross_entropy(given, dg.arange(4, device="cuda"), **options)


def test_second_derivatives_of_a_wide_loss(machine):
    given = dg.randn(4, 5, device="cuda").bfloat16().requires_grad_()
    with dg.autocast("cuda", dtype=dg.bfloat16):
        loss = F.cross_entropy(given * 1.0, dg.arange(4, device="cuda"))
    (grad,) = dg.autograd.grad(loss, given, create_graph=True)
    (second,) = dg.autograd.grad(grad.float().square().sum(), given)
    assert second.isfinite().all().item() and second.abs().sum().item() > 0


# ---------------------------------------------------------------------- attention in float32
SHAPES = {
    "heads": ((2, 3, 9, 4), (2, 3, 9, 4), 5), "longer keys": ((2, 3, 5, 4), (2, 3, 9, 4), 4),
    "longer queries": ((2, 3, 9, 4), (2, 3, 5, 4), 4), "no heads": ((3, 40, 4), (3, 40, 4), 4),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SHAPES)
def test_attention_by_rows(machine, monkeypatch, name, dtype, causal, seed):
    from distgrad.backend.cuda import attention_rows

    machine.seed = seed
    shape, keys, width = SHAPES[name]
    rng, kind = np.random.default_rng(0), getattr(dg, dtype)
    arrays = [rng.standard_normal(s) for s in (shape, keys, (*keys[:-1], width))]
    weights = rng.standard_normal((*shape[:-1], width))
    found = []
    for place, most in (("cpu", 1), ("cuda", 1 << 26), ("cuda", 1)):
        monkeypatch.setattr(attention_rows, "_MOST", most)
        q, k, v = (dg.tensor(a, dtype=kind, device=place).requires_grad_() for a in arrays)
        machine.launches.clear()
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        (out * dg.tensor(weights, dtype=kind, device=place)).sum().backward()
        parts = len(arrays[0]) if most == 1 else 1
        if place == "cuda":
            assert machine.launches.count("attention_rows") == parts
            assert machine.launches.count("d_attention_rows") == parts
        found.append([t.detach().cpu().numpy() for t in (out, q.grad, k.grad, v.grad)])
    rtol = 1e-5 if dtype == "float32" else 1e-12
    for mine in found[1:]:
        for got, want in zip(mine, found[0], strict=True):
            np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol)


def test_attention_in_float32_keeps_no_weights(machine):
    q = dg.randn(2, 2, 64, 8, device="cuda", requires_grad=True)
    out = F.scaled_dot_product_attention(q, q, q)
    weights = 2 * 2 * 64 * 64 * 4
    del out
    before = dg.cuda.memory_allocated()
    out = F.scaled_dot_product_attention(q, q, q)
    assert dg.cuda.memory_allocated() - before < weights / 4 and out.shape == q.shape
