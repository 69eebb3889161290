"""Parametrizations, lazy modules, pruning, fusion: what the matrix against PyTorch leaves out."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import distgrad as dg
from distgrad import nn
from distgrad.nn.utils import parametrizations, parametrize, prune


class Symmetric(nn.Module):
    calls = 0

    def forward(self, x: Any) -> Any:
        Symmetric.calls += 1
        return x.triu() + x.triu(1).mT


class Halves(nn.Module):
    def forward(self, a: Any, b: Any) -> Any:
        return dg.cat([a, b])

    def right_inverse(self, x: Any) -> Any:
        return x[:1].clone(), x[1:].clone()


# ---------------------------------------------------------------------- parametrizations
def test_a_parametrized_module_is_of_a_class_of_its_own_until_it_is_removed() -> None:
    layer = parametrize.register_parametrization(nn.Linear(3, 3), "weight", Symmetric())
    assert type(layer).__name__ == "ParametrizedLinear" and isinstance(layer, nn.Linear)
    assert parametrize.is_parametrized(layer, "weight") and not parametrize.is_parametrized(
        layer, "bias"
    )
    assert parametrize.type_before_parametrizations(layer) is nn.Linear
    original, now = layer.parametrizations.weight.original, layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear and layer.weight is original
    np.testing.assert_array_equal(layer.weight.detach().numpy(), now.numpy())


def test_values_are_computed_once_inside_cached() -> None:
    layer = parametrize.register_parametrization(nn.Linear(3, 3), "weight", Symmetric())
    before = Symmetric.calls
    with parametrize.cached():
        assert layer.weight is layer.weight
    assert Symmetric.calls == before + 1 and layer.weight is not layer.weight


def test_assigning_goes_through_the_inverse() -> None:
    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", Halves())
    assert layer.parametrizations.weight.original1.shape == (1, 2)
    layer.weight = dg.ones(2, 2)
    assert layer.weight.sum() == 4 and "parametrizations.weight.original0" in layer.state_dict()
    with pytest.raises(ValueError, match="Cannot leave unparametrized"):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    other = parametrize.register_parametrization(nn.Linear(3, 3), "weight", Symmetric())
    with pytest.raises(RuntimeError, match="does not implement right_inverse"):
        other.weight = dg.ones(3, 3)


def test_parametrizations_are_copied_but_not_pickled() -> None:
    layer = parametrizations.weight_norm(nn.Linear(3, 2))
    twin = copy.deepcopy(layer)
    twin.weight = dg.ones(2, 3)
    assert not dg.equal(twin.weight, layer.weight)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(layer)
    target = parametrize.transfer_parametrizations_and_params(layer, nn.Linear(3, 2))
    np.testing.assert_array_equal(target.weight.detach().numpy(), layer.weight.detach().numpy())


def test_parametrizations_must_keep_shape_and_dtype() -> None:
    with pytest.raises(ValueError, match="may not change the shape"):
        parametrize.register_parametrization(nn.Linear(3, 2), "weight", nn.Flatten(0))
    with pytest.raises(ValueError, match="does not have a parameter"):
        parametrize.register_parametrization(nn.Linear(3, 2), "nothing", Symmetric())
    with pytest.raises(ValueError, match="Expected a matrix"):
        parametrizations.orthogonal(nn.Linear(3, 2), "bias")
    with pytest.raises(ValueError, match="n_power_iterations to be positive"):
        parametrizations.spectral_norm(nn.Linear(3, 2), n_power_iterations=0)
    with pytest.raises(ValueError, match="has to be one of"):
        parametrizations.orthogonal(nn.Linear(3, 2), orthogonal_map="svd")


@pytest.mark.parametrize("kind", ["matrix_exp", "cayley", "householder"])
def test_an_orthogonal_weight_stays_orthogonal_in_training(kind: str) -> None:
    layer = parametrizations.orthogonal(nn.Linear(5, 3).double(), orthogonal_map=kind)
    optimizer = dg.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(dg.ones(2, 5, dtype=dg.float64)).square().sum().backward()
        optimizer.step()
    product = (layer.weight @ layer.weight.mT).detach().numpy()
    np.testing.assert_allclose(product, np.eye(3), atol=1e-12)


def test_older_state_dicts_of_weight_norm_are_taken() -> None:
    with pytest.warns(FutureWarning, match="deprecated in favor"):
        older = nn.utils.weight_norm(nn.Linear(3, 2))
    layer = parametrizations.weight_norm(nn.Linear(3, 2))
    layer.load_state_dict(older.state_dict())
    np.testing.assert_allclose(layer.weight.detach().numpy(), older.weight.detach().numpy())
    with pytest.raises(RuntimeError, match="Cannot register two weight_norm hooks"):
        nn.utils.weight_norm.__globals__["WeightNorm"].apply(older, "weight", 0)
    assert type(nn.utils.remove_weight_norm(older).weight) is nn.Parameter
    with pytest.raises(ValueError, match="not found in"):
        nn.utils.remove_weight_norm(older)


# ---------------------------------------------------------------------- lazy modules
def test_a_lazy_module_takes_its_sizes_from_a_state_dict_or_its_first_input() -> None:
    lazy = nn.LazyLinear(2)
    assert repr(lazy.weight) == "<UninitializedParameter>" and lazy.has_uninitialized_params()
    with pytest.raises(ValueError, match="Attempted to use an uninitialized parameter"):
        lazy.weight + 1
    with pytest.raises(RuntimeError, match="Can't access the shape"):
        nn.Linear(3, 2).load_state_dict(lazy.state_dict())
    assert lazy.double().weight.dtype == dg.float64
    assert repr(pickle.loads(pickle.dumps(lazy)).bias) == "<UninitializedParameter>"
    lazy.load_state_dict(nn.Linear(3, 2).state_dict())
    assert lazy.weight.shape == (2, 3) and type(lazy) is nn.LazyLinear
    lazy(dg.ones(1, 3, dtype=dg.float64))
    assert type(lazy) is nn.Linear and lazy.in_features == 3 and not lazy._forward_pre_hooks


def test_a_lazy_convolution_checks_its_first_input() -> None:
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        nn.LazyConv2d(4, 3, groups=2)(dg.ones(1, 3, 5, 5))
    with pytest.raises(RuntimeError, match=r"Expected 3D \(unbatched\) or 4D \(batched\) input"):
        nn.LazyConv2d(4, 3)(dg.ones(5, 5))
    with pytest.raises(ValueError, match="expected 4D input"):
        nn.LazyBatchNorm2d()(dg.ones(5, 5))


# ---------------------------------------------------------------------- pruning
@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "args"),
    [("l1_unstructured", (0.3,)), ("ln_structured", (1, 2, 0)), ("ln_structured", (0.5, 1, 1)),
     ("random_unstructured", (4,)), ("random_structured", (1, 1)), ("identity", ())],
)  # fmt: skip
def test_pruning_is_that_of_torch(name: str, args: tuple[Any, ...]) -> None:
    torch = pytest.importorskip("torch")
    import torch.nn.utils.prune as theirs  # needs torch

    torch.manual_seed(0)
    other = torch.nn.Linear(4, 3)
    own = nn.Linear(4, 3)
    own.load_state_dict({k: dg.tensor(v.numpy()) for k, v in other.state_dict().items()})
    for lib, module, layer in ((dg, prune, own), (torch, theirs, other)):
        lib.manual_seed(1)
        getattr(module, name)(layer, "weight", *args)
        module.l1_unstructured(layer, "weight", 2)
    assert list(own.state_dict()) == list(other.state_dict())
    np.testing.assert_array_equal(own.weight_mask.numpy(), other.weight_mask.numpy())
    np.testing.assert_array_equal(own.weight.detach().numpy(), other.weight.detach().numpy())
    own(dg.ones(1, 4)).sum().backward()
    assert own.weight_orig.grad is not None and prune.is_pruned(own)
    assert list(prune.remove(own, "weight").state_dict()) == ["bias", "weight"]


def test_pruning_over_several_parameters_and_by_a_mask() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with dg.no_grad():
        net[0].weight.copy_(net[0].weight * 100)
    pairs = [(net[0], "weight"), (net[1], "weight")]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=9)
    assert net[1].weight.abs().sum() == 0 and net[0].weight.abs().min() > 0
    prune.custom_from_mask(net[0], "bias", dg.tensor([1, 0, 1]))
    assert net[0].bias[1] == 0


def test_impossible_amounts_are_refused() -> None:
    layer = nn.Linear(3, 2)
    for amount, text in ((1.5, "in the range"), (10, "smaller than the number"), (-1, "in the")):
        with pytest.raises(ValueError, match=text):
            prune.l1_unstructured(nn.Linear(3, 2), "weight", amount)
    with pytest.raises(TypeError, match="Must be int or float"):
        prune.l1_unstructured(layer, "weight", "x")
    with pytest.raises(ValueError, match="has to be pruned before"):
        prune.remove(layer, "weight")
    with pytest.raises(ValueError, match="multidimensional"):
        prune.ln_structured(nn.Linear(3, 2), "bias", 0.5, 2, 0)
    with pytest.raises(IndexError, match="Invalid index 5"):
        prune.ln_structured(nn.Linear(3, 2), "weight", 0.5, 2, 5)


# ---------------------------------------------------------------------- one layer of two
@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 3, 5, 5)),
     (nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4), (2, 3, 5, 5)),
     (nn.Linear(3, 4), nn.BatchNorm1d(4), (5, 3))],
)  # fmt: skip
def test_a_normalisation_goes_into_the_layer_before(
    layer: Any, norm: Any, shape: tuple[int, ...]
) -> None:
    both = nn.Sequential(layer, norm)
    both(dg.randn(*shape))
    both.eval()
    x = dg.randn(*shape)
    if isinstance(layer, nn.Linear):
        fused = nn.utils.fuse_linear_bn_eval(layer, norm)
    else:
        fused = nn.utils.fuse_conv_bn_eval(layer, norm, isinstance(layer, nn.ConvTranspose2d))
    np.testing.assert_allclose(
        fused(x).detach().numpy(), both(x).detach().numpy(), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(AssertionError, match="only for eval"):
        nn.utils.fuse_conv_bn_eval(layer.train(), norm)


def test_skip_init_leaves_the_random_stream_alone() -> None:
    dg.manual_seed(0)
    first = dg.rand(1).item()
    dg.manual_seed(0)
    assert nn.utils.skip_init(nn.Linear, 2, 3).weight.shape == (3, 2)
    assert dg.rand(1).item() == first
    with pytest.raises(RuntimeError, match="must support a 'device' arg"):
        nn.utils.skip_init(nn.ReLU)


def test_weights_of_convolutions_take_another_order_in_memory() -> None:
    layer = nn.Conv2d(3, 4, 3)
    x, before = dg.randn(1, 3, 5, 5), layer.weight.detach().clone()
    expected = layer(x)
    nn.utils.convert_conv2d_weight_memory_format(layer, dg.channels_last)
    assert layer.weight.is_contiguous(memory_format=dg.channels_last)
    assert dg.equal(layer.weight, before)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected.detach().numpy(), rtol=1e-5)
    assert (
        nn.Conv2d(3, 4, 3)
        .to(memory_format=dg.channels_last)
        .weight.is_contiguous(memory_format=dg.channels_last)
    )


# ---------------------------------------------------------------------- attention by functions
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.attention import flex_attention as theirs  # needs torch

    from distgrad.nn.attention import flex_attention as ours

    arrays = [np.random.default_rng(k).standard_normal((2, 4, 5, 8)) for k in range(3)]
    found = []
    for lib, module in ((dg, ours), (torch, theirs)):
        slopes = lib.tensor(np.array([0.5, 0.25, 0.125, 0.1]))

        def score(s: Any, b: Any, h: Any, q: Any, k: Any, slopes: Any = slopes) -> Any:
            return s + slopes[h] * (k - q)

        def look(b: Any, h: Any, q: Any, k: Any) -> Any:
            return q >= k

        x = [lib.tensor(a.astype("float32")) for a in arrays]  # PyTorch has no backward here
        kwargs = {} if lib is dg else {"device": "cpu"}
        mask = module.create_block_mask(look, None, None, 5, 5, **kwargs)
        found.append(module.flex_attention(*x, score_mod=score, block_mask=mask).numpy())
    np.testing.assert_allclose(*found, rtol=2e-5, atol=1e-6)


def test_gradients_pass_through_flex_attention() -> None:
    from distgrad.nn.attention import flex_attention as flex  # one name for the module's functions

    mask = flex.create_block_mask(lambda b, h, q, k: q >= k, None, None, 5, 5)
    grads = []
    for attend in (
        lambda *x: flex.flex_attention(*x, block_mask=mask),
        lambda *x: nn.functional.scaled_dot_product_attention(*x, is_causal=True),
    ):
        dg.manual_seed(0)
        x = [dg.randn(2, 4, 5, 8, requires_grad=True) for _ in range(3)]
        attend(*x).square().sum().backward()
        grads.append([t.grad.numpy() for t in x])
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def test_rows_without_a_key_give_zeros_and_masks_combine() -> None:
    from distgrad.nn.attention import flex_attention as flex  # one name for the module's functions

    x = dg.ones(1, 1, 3, 2)
    none = flex.create_block_mask(lambda b, h, q, k: (q > 0) & (k >= 0), None, None, 3, 3)
    out, lse = flex.flex_attention(x, x, x, block_mask=none, return_lse=True)
    assert out[0, 0, 0].tolist() == [0, 0] and lse[0, 0, 0] == -dg.inf
    both = flex.and_masks(lambda b, h, q, k: q >= k, lambda b, h, q, k: k > 0)
    assert flex.create_mask(both, None, None, 2, 2)[0, 0].tolist() == [[False] * 2, [False, True]]
    either = flex.or_masks(flex.noop_mask, lambda b, h, q, k: q > k)
    assert flex.create_mask(either, 1, 1, 2, 2).all()
    causal = flex.create_block_mask(lambda b, h, q, k: q >= k, 1, 1, 256, 256)
    assert causal.sparsity() == 25.0 and causal.shape == (1, 1, 256, 256)
    with pytest.raises(ValueError, match="enable_gqa=True"):
        flex.flex_attention(dg.ones(1, 4, 2, 2), x, x)


def test_causal_biases_are_masks() -> None:
    from distgrad.nn.attention import SDPBackend, bias, sdpa_kernel  # beside its functions

    mask = bias.causal_lower_right(2, 3)
    q, k = dg.ones(1, 1, 2, 4), dg.ones(1, 1, 3, 4)
    v = dg.arange(3.0).reshape(1, 1, 3, 1)
    with sdpa_kernel(SDPBackend.MATH):
        out = nn.functional.scaled_dot_product_attention(q, k, v, mask)
    assert out.flatten().tolist() == [0.5, 1.0]
    with pytest.raises(TypeError, match="SDPBackend"), sdpa_kernel("flash"):
        pass


# ---------------------------------------------------------------------- gradients by name
def test_gradients_of_convolutions_are_those_of_autograd() -> None:
    x, w = dg.randn(2, 3, 7, requires_grad=True), dg.randn(4, 3, 3, requires_grad=True)
    out = nn.functional.conv1d(x, w, stride=2, padding=1)
    g = dg.randn(*out.shape)
    out.backward(g)
    got = nn.grad.conv1d_input(x.shape, w, g, stride=2, padding=1)
    np.testing.assert_allclose(got.detach().numpy(), x.grad.numpy(), rtol=1e-5, atol=1e-6)
    got = nn.grad.conv1d_weight(x, w.shape, g, stride=2, padding=1)
    np.testing.assert_allclose(got.detach().numpy(), w.grad.numpy(), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- products of groups
@pytest.mark.torch
@pytest.mark.parametrize(
    ("a", "b", "ends"),
    [((6, 16), (2, 16, 8), [2, 6]), ((2, 3, 16), (16, 8), [3, 8]), ((3, 16), (16, 8), [8, 16]),
     ((2, 3, 16), (2, 16, 8), None)],
)  # fmt: skip
def test_products_of_groups_are_those_of_torch(a: Any, b: Any, ends: Any) -> None:
    torch = pytest.importorskip("torch")
    numbers = np.random.default_rng(0)
    x, y = (numbers.standard_normal(s).astype("float32") for s in (a, b))
    found = []
    for lib in (dg, torch):
        p, q = (lib.tensor(v, requires_grad=True) for v in (x, y))
        offs = None if ends is None else lib.tensor(ends, dtype=lib.int32)
        out = lib.nn.functional.grouped_mm(p, q, offs=offs)
        out.square().sum().backward()
        found.append([out.detach().numpy(), p.grad.numpy(), q.grad.numpy()])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_groups_must_fit() -> None:
    mm, a, b = nn.functional.grouped_mm, dg.ones(6, 4), dg.ones(2, 4, 3)
    with pytest.raises(RuntimeError, match="Have to provide offsets"):
        mm(a, b)
    with pytest.raises(RuntimeError, match="Offsets have to be int32"):
        mm(a, b, offs=dg.tensor([2, 6]))
    with pytest.raises(RuntimeError, match="must not decrease and end at 6"):
        mm(a, b, offs=dg.tensor([2, 4], dtype=dg.int32))
