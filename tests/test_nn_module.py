"""Module: registration, names, state, modes, hooks and printed form."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import distgrad as dg
from distgrad import nn
from distgrad.errors import CheckpointError
from distgrad.nn import hooks


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(dg.ones(1))
        self.register_buffer("seen", dg.zeros(2), persistent=False)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x)) * self.scale


# ---------------------------------------------------------------------- registration
def test_assigned_parameters_buffers_and_modules_are_found_by_name() -> None:
    net = Net()
    assert [n for n, _ in net.named_parameters()] == [
        "scale", "body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias", "head.weight",
        "head.bias",
    ]  # fmt: skip
    assert [n for n, _ in net.named_buffers()] == [
        "seen", "body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked",
    ]  # fmt: skip
    assert [n for n, _ in net.named_modules()] == ["", "body", "body.0", "body.1", "body.2", "head"]
    assert [n for n, _ in net.named_children()] == ["body", "head"]
    assert net.get_submodule("body.0") is net.body[0]
    assert net.get_parameter("body.0.weight") is net.body[0].weight
    assert net.get_buffer("seen") is net.seen
    assert "scale" in dir(net)


def test_a_shared_parameter_is_given_once_unless_duplicates_are_wanted() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    assert [n for n, _ in net.named_parameters()] == ["0.weight"]
    names = [n for n, _ in net.named_parameters(remove_duplicate=False)]
    assert names == ["0.weight", "1.weight"]
    assert list(net.state_dict()) == ["0.weight", "1.weight"]


def test_a_name_moves_between_kinds() -> None:
    net = nn.Module()
    net.x = dg.ones(1)
    assert not list(net.buffers())
    net.x = nn.Parameter(dg.ones(1))
    assert [n for n, _ in net.named_parameters()] == ["x"]
    net.x = None
    assert net.x is None and list(net._parameters) == ["x"]
    del net.x
    net.x = nn.Linear(1, 1)
    assert [n for n, _ in net.named_children()] == ["x"]
    net.x = nn.Parameter(dg.ones(1))
    assert not list(net.children())
    net.y = nn.Buffer(dg.ones(1), persistent=False)
    net.y = dg.zeros(1)
    assert [n for n, _ in net.named_buffers()] == ["y"]
    assert list(net.state_dict()) == ["x"]
    with pytest.raises(AttributeError, match="'Module' object has no attribute 'z'"):
        net.z  # noqa: B018


def test_wrong_registrations_are_refused() -> None:
    net = Net()
    with pytest.raises(TypeError, match="cannot assign 'Tensor' as parameter 'scale'"):
        net.scale = dg.ones(1)
    with pytest.raises(TypeError, match="cannot assign 'int' as child module 'head'"):
        net.head = 3
    with pytest.raises(TypeError, match="cannot assign 'int' as buffer 'seen'"):
        net.seen = 3
    with pytest.raises(KeyError, match="attribute 'forward' already exists"):
        net.register_parameter("forward", None)
    with pytest.raises(KeyError, match=r"can.*t contain"):
        net.register_buffer("a.b", None)
    with pytest.raises(KeyError, match=r"can.*t be empty string"):
        net.add_module("", nn.ReLU())
    with pytest.raises(TypeError, match="is not a Module subclass"):
        net.add_module("x", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Cannot assign non-leaf Tensor to parameter 'x'"):
        weight = nn.Parameter(dg.ones(1))
        weight._node = (dg.ones(1, requires_grad=True) * 2)._node
        net.register_parameter("x", weight)

    class Late(nn.Module):
        def __init__(self) -> None:
            self.weight = nn.Parameter(dg.ones(1))

    with pytest.raises(AttributeError, match=r"cannot assign parameters before Module\.__init__"):
        Late()
    with pytest.raises(NotImplementedError, match='missing the required "forward" function'):
        nn.Module()(1)


def test_a_parameter_prints_copies_and_pickles_as_one() -> None:
    p = nn.Parameter(dg.tensor([1.0, 2.0]))
    assert repr(p) == "Parameter containing:\ntensor([1., 2.], requires_grad=True)"
    assert not nn.Parameter(dg.ones(1), requires_grad=False).requires_grad
    for twin in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert type(twin) is nn.Parameter
        assert twin.requires_grad and twin.tolist() == [1.0, 2.0]
        assert not np.shares_memory(twin.array, p.array)
    with pytest.raises(TypeError, match="takes a Tensor"):
        nn.Parameter([1.0])  # type: ignore[arg-type]


# ---------------------------------------------------------------------- state
def test_state_dict_shares_memory_and_load_copies_into_it() -> None:
    net, other = Net(), Net()
    state = net.state_dict()
    assert np.shares_memory(state["scale"].array, net.scale.array)
    assert not state["scale"].requires_grad
    assert net.state_dict(keep_vars=True)["scale"] is net.scale
    assert next(iter(net.state_dict(prefix="m."))) == "m.scale"
    kept, version = other.head.weight, other.head.weight._version
    assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
    assert other.head.weight is kept and kept._version > version
    np.testing.assert_array_equal(other.head.weight.array, net.head.weight.array)
    assert not np.shares_memory(other.head.weight.array, net.head.weight.array)


def test_load_with_assign_takes_the_tensors() -> None:
    net, other = Net(), Net()
    other.load_state_dict(net.state_dict(), assign=True)
    assert np.shares_memory(other.head.weight.array, net.head.weight.array)
    assert isinstance(other.head.weight, nn.Parameter) and other.head.weight.requires_grad


def _messages(module: Any, state: Any) -> str:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        return str(error).replace("torch.", "distgrad.")
    raise AssertionError("nothing was raised")


@pytest.mark.torch
def test_messages_of_load_state_dict_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")

    def broken(lib: Any, net: Any) -> Any:
        state = net.state_dict()
        del state["0.bias"], state["1.running_mean"]
        state["9.weight"] = state["extra"] = lib.ones(1)
        state["0.weight"] = lib.ones(4, 4)
        return state

    ours = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    message = _messages(ours, broken(dg, ours))
    assert message == _messages(theirs, broken(torch, theirs))
    with pytest.raises(CheckpointError):
        ours.load_state_dict(broken(dg, ours))
    with pytest.raises(TypeError, match="Expected state_dict to be dict-like"):
        ours.load_state_dict([1])


def test_a_load_that_is_not_strict_returns_what_did_not_match() -> None:
    net = nn.Linear(2, 2)
    missing, unexpected = net.load_state_dict({"weight": dg.zeros(2, 2), "x": dg.zeros(1)}, False)
    assert (missing, unexpected) == (["bias"], ["x"])
    assert net.weight.sum().item() == 0
    with pytest.raises(CheckpointError, match="size mismatch for weight"):
        net.load_state_dict({"weight": dg.zeros(3, 2)}, strict=False)
    with pytest.raises(CheckpointError, match="received <class 'int'>"):
        net.load_state_dict({"weight": 3, "bias": dg.zeros(2)})


def test_extra_state_and_hooks_take_part() -> None:
    class Counting(nn.Linear):
        count = 0

        def get_extra_state(self) -> Any:
            return {"count": self.count}

        def set_extra_state(self, state: Any) -> None:
            self.count = state["count"]

    net = nn.Sequential(Counting(1, 1))
    net[0].count = 5
    state = net.state_dict()
    assert list(state) == ["0.weight", "0.bias", "0._extra_state"]
    calls: list[str] = []
    net.register_state_dict_post_hook(lambda m, s, p, metadata: calls.append("post"))
    net.register_state_dict_pre_hook(lambda m, prefix, keep: calls.append("pre"))
    net.state_dict()
    other = nn.Sequential(Counting(1, 1))
    other.register_load_state_dict_pre_hook(lambda m, s, *rest: calls.append("load"))
    other.register_load_state_dict_post_hook(lambda m, keys: keys.missing_keys.clear())
    del state["0.bias"]
    other.load_state_dict(state)
    assert other[0].count == 5
    assert calls == ["pre", "post", "load"]


def test_old_batch_norms_without_a_count_are_taken() -> None:
    state = {k: v for k, v in nn.BatchNorm1d(2).state_dict().items() if "num" not in k}
    nn.BatchNorm1d(2).load_state_dict(state)


# ---------------------------------------------------------------------- modes and conversion
def test_train_and_eval_reach_every_descendant() -> None:
    net = Net().eval()
    assert not any(m.training for m in net.modules())
    assert all(m.training for m in net.train().modules())
    with pytest.raises(ValueError, match="training mode is expected to be boolean"):
        net.train(1)  # type: ignore[arg-type]


def test_requires_grad_zero_grad_and_apply() -> None:
    net = Net()
    net(dg.ones(3, 3)).sum().backward()
    kept = net.scale.grad
    net.zero_grad(set_to_none=False)
    assert net.scale.grad is kept and kept.item() == 0
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    net.requires_grad_(False)
    assert not net(dg.ones(3, 3)).requires_grad
    names: list[str] = []
    assert net.apply(lambda m: names.append(type(m).__name__)) is net
    assert names == ["Linear", "BatchNorm1d", "ReLU", "Sequential", "Linear", "Net"]


def test_to_converts_floats_in_place_and_leaves_counts() -> None:
    net = Net()
    weight = net.head.weight
    net(dg.ones(3, 3)).sum().backward()
    assert net.double() is net
    assert net.head.weight is weight and weight.dtype is dg.float64
    assert weight.grad is not None and weight.grad.dtype is dg.float64
    assert net.body[1].num_batches_tracked.dtype is dg.int64
    assert net.to("cpu", dg.float32).seen.dtype is dg.float32
    assert net.to(dg.ones(1, dtype=dg.float16)).scale.dtype is dg.float16
    assert net.float().half().type(dg.float64).body[1].num_batches_tracked.dtype is dg.float64
    with pytest.raises(TypeError, match="only accepts floating point"):
        net.to(dg.int64)
    with pytest.raises(TypeError, match="unexpected keyword argument 'place'"):
        net.to(place="cpu")


def test_a_copied_module_is_independent() -> None:
    net = Net()
    net.register_forward_hook(lambda m, args, out: out * 2)
    for twin in (copy.deepcopy(net), copy.deepcopy(net).eval()):
        twin.scale.array[...] = 7
        assert net.scale.item() == 1
    plain = pickle.loads(pickle.dumps(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
    assert plain(dg.ones(1, 2)).shape == (1, 2)


# ---------------------------------------------------------------------- hooks
def test_forward_hooks_see_and_replace_inputs_and_outputs() -> None:
    layer = nn.Identity()
    first = layer.register_forward_pre_hook(lambda m, args: args[0] + 1)
    layer.register_forward_hook(lambda m, args, out: out * 10)
    layer.register_forward_hook(lambda m, args, out: out + 1, prepend=True)
    assert layer(dg.zeros(1)).item() == 20
    first.remove()
    assert layer(dg.zeros(1)).item() == 10


def test_hooks_may_take_keyword_arguments() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Any, by: int = 1) -> Any:
            return x * by

    layer = Scaled()
    layer.register_forward_pre_hook(lambda m, a, k: (a, {"by": k["by"] + 1}), with_kwargs=True)
    layer.register_forward_hook(lambda m, a, k, out: out + k["by"], with_kwargs=True)
    assert layer(dg.ones(1), by=2).item() == 6


def test_a_hook_that_must_be_called_is_called_after_an_error() -> None:
    class Failing(nn.Module):
        def forward(self, x: Any) -> Any:
            raise ZeroDivisionError

    calls: list[Any] = []
    layer = Failing()
    layer.register_forward_hook(lambda m, a, out: calls.append(out), always_call=True)
    layer.register_forward_hook(lambda m, a, out: calls.append("no"))
    with pytest.raises(ZeroDivisionError):
        layer(dg.ones(1))
    assert calls == [None]


def test_hooks_of_all_modules_run_and_can_be_removed() -> None:
    calls: list[str] = []
    handles = [
        hooks.register_module_forward_pre_hook(lambda m, a: calls.append("pre")),
        hooks.register_module_forward_hook(lambda m, a, out: calls.append("post")),
        hooks.register_module_full_backward_hook(lambda m, i, o: calls.append("backward")),
    ]
    nn.ReLU()(dg.ones(1, requires_grad=True)).backward()
    for handle in handles:
        handle.remove()
    nn.ReLU()(dg.ones(1))
    assert calls == ["pre", "post", "backward"]


def _backward_with_hooks(lib: Any) -> tuple[list[Any], list[Any]]:
    class Two(lib.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any, n: int, y: Any) -> Any:
            return x * y, x + n

    seen: list[Any] = []

    def note(grads: Any) -> list[Any]:
        return [None if g is None else g.tolist() for g in grads]

    layer = Two()
    layer.register_full_backward_pre_hook(lambda m, out: seen.append(note(out)))
    layer.register_full_backward_hook(lambda m, i, o: seen.append((note(i), note(o))))
    layer.register_full_backward_hook(lambda m, i, o: (i[0] * 2, None, i[2]))
    x = lib.tensor([1.0, 2.0], requires_grad=True)
    y = lib.tensor([3.0, 4.0], requires_grad=True)
    a, b = layer(x, 5, y)
    (a * 2 + b).sum().backward()
    layer(x, 1, lib.tensor([1.0, 1.0]))[1].sum().backward()
    return seen, [x.grad.tolist(), y.grad.tolist()]


@pytest.mark.torch
def test_backward_hooks_see_what_those_of_torch_see() -> None:
    torch = pytest.importorskip("torch")
    assert _backward_with_hooks(dg) == _backward_with_hooks(torch)


def test_a_backward_hook_runs_when_no_input_requires_grad() -> None:
    layer = nn.Linear(2, 1)
    seen: list[Any] = []
    layer.register_full_backward_hook(lambda m, i, o: seen.append((i, o[0].tolist())))
    layer(dg.ones(1, 2)).sum().backward()
    assert seen == [((None,), [[1.0]])]
    assert layer.weight.grad is not None


def test_a_backward_hook_of_the_wrong_length_is_refused() -> None:
    layer = nn.Linear(2, 1)
    layer.register_full_backward_hook(lambda m, i, o: (i[0], i[0]))
    with pytest.raises(ValueError, match="invalid number of grad_input, got 2, but expected 1"):
        layer(dg.ones(1, 2, requires_grad=True)).sum().backward()


def test_second_derivatives_pass_backward_hooks() -> None:
    layer = nn.Tanh()
    layer.register_full_backward_hook(lambda m, i, o: None)
    x = dg.tensor([0.3], requires_grad=True)
    (first,) = dg.grad(layer(x), x, create_graph=True)
    (second,) = dg.grad(first, x)
    t = np.tanh(0.3)
    np.testing.assert_allclose(second.item(), -2 * t * (1 - t * t), rtol=1e-5)


# ---------------------------------------------------------------------- containers
def test_sequential_is_a_list_of_modules() -> None:
    a, b, c = nn.ReLU(), nn.Tanh(), nn.Sigmoid()
    net = nn.Sequential(a, b)
    assert net[-1] is b and len(net) == 2 and list(net[:1]) == [a]
    net.append(c).insert(0, c)
    assert list(net) == [c, a, b, c]
    del net[0]
    assert [n for n, _ in net.named_children()] == ["0", "1", "2"]
    net[0] = c
    assert net.pop(0) is c and list(net + nn.Sequential(a)) == [b, c, a]
    named = nn.Sequential({"first": a, "second": b})
    assert named.first is a and list(named[1:]._modules) == ["second"]
    with pytest.raises(IndexError, match="out of range"):
        net[5]


def test_module_list_and_dict_hold_modules() -> None:
    a, b = nn.Linear(1, 1), nn.ReLU()
    modules = nn.ModuleList([a])
    modules += [b]
    modules.insert(0, b)
    assert list(modules) == [b, a, b] and a in modules
    assert modules.pop(0) is b and isinstance(modules[:1], nn.ModuleList)
    assert [n for n, _ in modules.named_parameters()] == ["0.weight", "0.bias"]
    named = nn.ModuleDict({"a": a})
    named.update([("b", b)])
    assert list(named) == ["a", "b"] and named["b"] is b and "a" in named
    assert list(named.items()) == [("a", a), ("b", b)] and named.pop("a") is a


def test_parameter_list_and_dict_make_parameters() -> None:
    values = nn.ParameterList([dg.ones(2), nn.Parameter(dg.zeros(1))])
    values.append(dg.ones(3))
    assert [tuple(p.shape) for p in values.parameters()] == [(2,), (1,), (3,)]
    assert all(isinstance(p, nn.Parameter) for p in values) and len(values[1:]) == 2
    named = nn.ParameterDict({"w": dg.ones(2)})
    named["b"] = dg.zeros(1)
    assert list(named.state_dict()) == ["w", "b"]
    assert named.pop("w").sum().item() == 2 and "w" not in named
    assert named.get("w", 3) == 3 and list((named | {"c": dg.ones(1)}).keys()) == ["b", "c"]


@pytest.mark.torch
def test_printed_forms_of_containers_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")

    def build(lib: Any) -> Any:
        block = [lib.nn.Sequential(lib.nn.Linear(2, 2), lib.nn.ReLU()) for _ in range(3)]
        return lib.nn.ModuleDict(
            {
                "blocks": lib.nn.ModuleList([*block, lib.nn.Tanh()]),
                "empty": lib.nn.ModuleList(),
                "none": lib.nn.Sequential(),
            }
        )

    assert repr(build(dg)) == repr(build(torch))
    ours = nn.ParameterList([dg.ones(2, 3), 3]), nn.ParameterDict({"w": dg.ones(2)})
    theirs = (
        torch.nn.ParameterList([torch.ones(2, 3), 3]),
        torch.nn.ParameterDict({"w": torch.ones(2)}),
    )
    for a, b in zip(ours, theirs, strict=True):
        assert repr(a) == repr(b).replace("torch.", "distgrad.")


# ---------------------------------------------------------------------- less common ways
def test_hooks_of_registration_see_and_replace_what_is_registered() -> None:
    seen = []
    handles = [
        hooks.register_module_parameter_registration_hook(lambda m, n, p: seen.append(n)),
        hooks.register_module_buffer_registration_hook(lambda m, n, b: seen.append(n)),
        hooks.register_module_module_registration_hook(lambda m, n, c: nn.Identity()),
    ]
    try:
        net = nn.Module()
        net.weight = nn.Parameter(dg.ones(1))
        net.register_buffer("mean", dg.ones(1))
        net.child = nn.ReLU()
    finally:
        for handle in handles:
            handle.remove()
    assert seen == ["weight", "mean"] and isinstance(net.child, nn.Identity)
    net.other = nn.ReLU()
    assert isinstance(net.other, nn.ReLU)


def test_a_submodule_is_put_in_the_place_of_another() -> None:
    net = Net()
    net.set_submodule("body.2", nn.Tanh())
    assert isinstance(net.body[2], nn.Tanh)
    net.set_submodule("body.extra", nn.Tanh())
    assert list(dict(net.body.named_children())) == ["0", "1", "2", "extra"]
    for target, module, error in (
        ("body.9", nn.Tanh(), AttributeError),
        ("no.where", nn.Tanh(), AttributeError),
        ("scale", nn.Tanh(), AttributeError),
        ("", nn.Tanh(), ValueError),
        ("head", 3, ValueError),
    ):
        with pytest.raises(error):
            net.set_submodule(target, module, strict=True)  # type: ignore[arg-type]


def test_state_dict_takes_older_positional_arguments() -> None:
    net, into = nn.Linear(1, 1), {}
    with pytest.warns(FutureWarning, match="Positional args are being deprecated"):
        net.state_dict(into, "net.")
    assert list(into) == ["net.weight", "net.bias"]
    net.register_state_dict_post_hook(lambda *args: {})
    with pytest.raises(RuntimeError, match="post-hook must return None"):
        net.state_dict()


def test_a_hook_behind_the_scenes_may_replace_the_state_dict() -> None:
    net = nn.Linear(1, 1)
    net._register_state_dict_hook(lambda *args: {"other": 1})
    assert net.state_dict() == {"other": 1}


def test_arguments_of_init_are_for_classes_further_on() -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    class Both(nn.Module, Named):
        call_super_init = True

    assert Both("x").name == "x"
    with pytest.raises(TypeError, match=r"takes 1 positional argument but 2 were given"):
        nn.Module(3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'a'"):
        nn.Module(a=3)


def test_devices_that_are_not_there_are_refused() -> None:
    for name in ("ipu", "xpu", "mtia"):
        with pytest.raises(RuntimeError, match=name):
            getattr(nn.Linear(1, 1), name)()


def test_one_process_drives_one_device() -> None:
    net = nn.DataParallel(nn.Linear(2, 1))
    assert list(net.state_dict()) == ["module.weight", "module.bias"]
    assert dg.equal(net(dg.ones(1, 2)), net.module(dg.ones(1, 2)))
    assert nn.parallel.data_parallel(net.module, dg.ones(1, 2)).shape == (1, 1)
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        nn.DataParallel(nn.Linear(2, 1), device_ids=[0, 1])
    state = net.state_dict()
    nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")
    assert not any(nn.Linear(2, 1).load_state_dict(state)) and list(state._metadata) == [""]


def test_older_names_warn() -> None:
    for make in (
        lambda: nn.Container(a=nn.ReLU()),
        lambda: nn.NLLLoss2d(),
        lambda: nn.init.uniform(dg.ones(2)),
        lambda: nn.init.orthogonal(dg.ones(2, 2)),
    ):
        with pytest.warns(FutureWarning, match="deprecated"):
            make()


def test_adaptive_softmax_refuses_targets_and_cutoffs_that_do_not_fit() -> None:
    layer, x = nn.AdaptiveLogSoftmaxWithLoss(4, 10, [3]), dg.zeros(2, 4)
    assert layer.log_prob(x).exp().sum(1).sub(1).abs().max() < 1e-6
    assert layer.predict(x).shape == (2,)
    for target, text in (
        (dg.tensor([1, 11]), r"should be in \[0, 9\], but values in range \[1, 11\]"),
        (dg.tensor([1]), "same size in the batch dimension"),
        (dg.zeros(2, 2).long(), "multi-target not supported"),
        (dg.tensor(1), "0D target tensor expects 1D input"),
    ):
        with pytest.raises(RuntimeError, match=text):
            layer(x, target)
    for cutoffs in ([], [6, 3], [3, 10], [0]):
        with pytest.raises(ValueError, match="cutoffs should be a sequence"):
            nn.AdaptiveLogSoftmaxWithLoss(4, 10, cutoffs)
