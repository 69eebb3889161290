"""Optimizer: groups, hooks, closures, errors."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from distgrad import optim
from distgrad.autograd import grad
from distgrad.errors import ArgumentError, ArgumentTypeError
from distgrad.tensor import Tensor, wrap


def _param(*shape: int) -> Tensor:
    p = wrap(np.ones(shape, "float32")).requires_grad_()
    p.grad = wrap(np.ones(shape, "float32"))
    return p


def test_groups_have_options_of_their_own() -> None:
    a, b = _param(2), _param(2)
    optimizer = optim.SGD([{"params": a}, {"params": [b], "lr": 1.0}], lr=0.5)
    optimizer.step()
    assert a.tolist() == [0.5, 0.5]
    assert b.tolist() == [0.0, 0.0]


def test_an_option_changed_between_steps_counts() -> None:
    a = _param(1)
    optimizer = optim.SGD([a], lr=0.5)
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.5
    optimizer.step()
    assert a.tolist() == [0.5]
    assert "momentum_buffer" in optimizer.state[a]


def test_names_are_kept() -> None:
    optimizer = optim.AdamW([("first", _param(1)), ("second", _param(1))])
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["first", "second"]


def test_a_tensor_is_taken_as_learning_rate() -> None:
    a = _param(1)
    optim.SGD([a], lr=wrap(np.array(0.5, "float32"))).step()
    assert a.tolist() == [0.5]


def test_the_closure_is_called_with_recording_on() -> None:
    a = _param(1)
    seen = []

    def closure() -> float:
        from distgrad.autograd.mode import mode

        seen.append(mode.grad)
        return 3.0

    assert optim.SGD([a]).step(closure) == 3.0
    assert seen == [True]


def test_zero_grad_drops_or_fills() -> None:
    a = _param(2)
    optimizer = optim.SGD([a])
    kept = a.grad
    optimizer.zero_grad(set_to_none=False)
    assert a.grad is kept
    assert a.grad is not None and a.grad.tolist() == [0.0, 0.0]
    optimizer.zero_grad()
    assert a.grad is None


def test_zero_grad_cuts_a_gradient_from_its_graph_and_keeps_the_tensor() -> None:
    a = wrap(np.ones(2, "float32")).requires_grad_()
    (gradient,) = grad((a**3).sum(), a, create_graph=True)
    a.grad = gradient
    optim.SGD([a]).zero_grad(set_to_none=False)
    assert a.grad is gradient and not gradient.requires_grad
    assert gradient.tolist() == [0.0, 0.0]


def test_names_are_those_of_the_loaded_state_or_stay() -> None:
    first = optim.SGD([("a", _param(1)), ("b", _param(1))])
    second = optim.SGD([("x", _param(1)), ("y", _param(1))])
    second.load_state_dict(optim.SGD([_param(1), _param(1)]).state_dict())
    assert second.param_groups[0]["param_names"] == ["x", "y"]
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["param_names"] == ["a", "b"]


def test_names_are_given_to_all_or_to_none() -> None:
    with pytest.raises(ArgumentError, match="Some param names are missing"):
        optim.SGD([("a", _param(1)), _param(1)])
    optimizer = optim.SGD([_param(1)])
    with pytest.raises(ArgumentError, match="cannot add param group with names"):
        optimizer.add_param_group({"params": [("a", _param(1))]})


def test_a_state_tensor_that_is_replaced_is_used() -> None:
    a = _param(2)
    optimizer = optim.SGD([a], lr=1.0, momentum=1.0)
    optimizer.step()
    optimizer.state[a]["momentum_buffer"] = wrap(np.array([10.0, 20.0], "float32"))
    optimizer.step()
    assert a.tolist() == [0.0 - 11.0, 0.0 - 21.0]


def test_hooks_run_around_the_step_also_of_ones_own_optimizer() -> None:
    calls: list[Any] = []

    class Own(optim.Optimizer):
        def step(self, closure: Any = None) -> None:
            calls.append("step")

    own = Own([_param(1)], {"lr": 1.0})
    own.register_step_pre_hook(lambda optimizer, args, kwargs: calls.append("before"))
    handle = own.register_step_post_hook(lambda optimizer, args, kwargs: calls.append("after"))
    everywhere = optim.register_optimizer_step_pre_hook(lambda o, a, k: calls.append("all"))
    own.step()
    handle.remove()
    everywhere.remove()
    own.step()
    assert calls == ["all", "before", "step", "after", "before", "step"]


def test_state_dict_hooks_may_change_the_state() -> None:
    optimizer = optim.SGD([_param(1)])
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda o, state: {k: v for k, v in state.items() if k != "extra"}
    )
    state = optimizer.state_dict()
    assert state["extra"] == 1
    optimizer.load_state_dict(state)


def test_a_hook_may_change_the_arguments_and_nothing_else() -> None:
    optimizer = optim.SGD([_param(1)])
    handle = optimizer.register_step_pre_hook(lambda o, args, kwargs: ((lambda: 7.0,), {}))
    assert optimizer.step() == 7.0
    handle.remove()
    optimizer.register_step_pre_hook(lambda o, args, kwargs: 3)
    with pytest.raises(RuntimeError, match="None or a tuple of"):
        optimizer.step()


def test_options_that_a_checkpoint_lacks_have_their_defaults() -> None:
    optimizer = optim.NAdam([_param(1)], maximize=True)
    state = optimizer.state_dict()
    for name in ("maximize", "foreach", "decoupled_weight_decay"):
        del state["param_groups"][0][name]
    optimizer.load_state_dict(state)
    optimizer.step()
    assert optimizer.param_groups[0]["maximize"] is True


def test_adamw_goes_on_from_a_state_of_adam_as_adamw() -> None:
    optimizer = optim.AdamW([_param(1)])
    optimizer.load_state_dict(optim.Adam([_param(1)], weight_decay=0.5).state_dict())
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_other_parameters_are_stepped_inside_a_block() -> None:
    a, b = _param(2), _param(2)
    optimizer = optim.SGD([a], lr=1.0, momentum=1.0)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    with optim.swap_in_optimizer_params_and_state(optimizer, {"b": b}, state):
        optimizer.step()
    assert (a.tolist(), b.tolist()) == ([0.0, 0.0], [-1.0, -1.0])
    assert state["state"][0]["momentum_buffer"].tolist() == [2.0, 2.0]
    assert optimizer.state[a]["momentum_buffer"].tolist() == [1.0, 1.0]
    two = optim.swap_in_optimizer_params_and_state(optimizer, {"a": a, "b": b}, state)
    with pytest.raises(ArgumentError, match="2 parameters for a state of 1"), two:
        pass


def test_loaded_state_is_a_copy_in_the_dtype_of_its_parameter() -> None:
    a = _param(2)
    optimizer = optim.Adam([a])
    optimizer.step()
    wide = wrap(np.ones(2, "float64")).requires_grad_()
    wide.grad = wrap(np.ones(2))
    other = optim.Adam([wide])
    other.load_state_dict(optimizer.state_dict())
    assert other.state[wide]["exp_avg"].array.dtype == "float64"
    assert other.state[wide]["step"].array.dtype == "float32"
    other.step()
    assert optimizer.state[a]["step"].item() == 1
    assert other.state[wide]["step"].item() == 2


def test_a_count_kept_as_number_is_taken() -> None:
    a = _param(2)
    optimizer = optim.Adam([a])
    optimizer.step()
    state = optimizer.state_dict()
    state["state"] = {0: {**state["state"][0], "step": 7}}
    optimizer.load_state_dict(state)
    optimizer.step()
    assert optimizer.state[a]["step"].item() == 8


def test_state_can_be_moved_to_a_new_parameter() -> None:
    a = _param(3)
    optimizer = optim.Adam([a])
    optimizer.step()
    kept = optimizer.state.pop(a)
    b = _param(2)
    kept["exp_avg"], kept["exp_avg_sq"] = (
        wrap(kept[k].array[:2]) for k in ("exp_avg", "exp_avg_sq")
    )
    optimizer.param_groups[0]["params"][0] = b
    optimizer.state[b] = kept
    optimizer.step()
    assert optimizer.state[b]["step"].item() == 2
    assert optimizer.state[b]["exp_avg"].array.shape == (2,)


NEGATIVE: list[tuple[str, dict[str, Any], str]] = [
    ("SGD", {"lr": -0.1}, "Invalid learning rate: -0.1"),
    ("SGD", {"lr": float("nan")}, "Invalid learning rate: nan"),
    ("SGD", {"momentum": -1}, "Invalid momentum value: -1"),
    ("SGD", {"weight_decay": -1}, "Invalid weight_decay value: -1"),
    ("SGD", {"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
    ("Adam", {"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
    ("Adamax", {"betas": (0.0, 2)}, "Invalid beta parameter at index 1: 2"),
    ("AdamW", {"eps": -1}, "Invalid epsilon value: -1"),
    ("RMSprop", {"alpha": -1}, "Invalid alpha value: -1"),
    ("Adagrad", {"lr_decay": -1}, "Invalid lr_decay value: -1"),
    ("Adadelta", {"rho": 2}, "Invalid rho value: 2"),
    ("NAdam", {"momentum_decay": -1}, "Invalid momentum_decay value: -1"),
    ("Rprop", {"etas": (0.5, 0.9)}, r"Invalid eta values: 0\.5, 0\.9"),
    ("ASGD", {"weight_decay": -1}, "Invalid weight_decay value: -1"),
    ("LBFGS", {"lr": -1}, "Invalid learning rate: -1"),
    ("Adam", {"lr": wrap(np.ones(2))}, "Tensor lr must be 1-element"),
    ("Adam", {"lr": wrap(np.ones(1)), "foreach": True}, "lr as a Tensor is not supported"),
    ("AdamW", {"betas": (wrap(np.ones(()) / 2), 0.9)}, "either both floats or both Tensors"),
    ("SGD", {"fused": True, "foreach": True}, "`fused` and `foreach` cannot be `True` together"),
    ("SGD", {"fused": True, "differentiable": True}, "`fused` does not support `differentiable`"),
    ("RAdam", {"differentiable": True}, "steps are not recorded"),
]


def test_options_that_exclude_each_other_raise_what_torch_raises() -> None:
    with pytest.raises(RuntimeError, match="cannot be `True` together"):
        optim.Adam([_param(1)], fused=True, foreach=True)


def test_lbfgs_takes_one_group_and_one_kind_of_search() -> None:
    with pytest.raises(ArgumentError, match="doesn't support per-parameter options"):
        optim.LBFGS([{"params": [_param(1)]}, {"params": [_param(1)]}])
    with pytest.raises(RuntimeError, match="only 'strong_wolfe' is supported"):
        optim.LBFGS([_param(1)], line_search_fn="armijo").step(lambda: 0.0)


def test_an_option_may_be_required_of_every_group() -> None:
    from distgrad.optim.optimizer import required

    with pytest.raises(ArgumentError, match="didn't specify a value of required optimization par"):
        optim.Optimizer([_param(1)], {"lr": required})
    assert optim.Optimizer([{"params": [_param(1)], "lr": 2}], {"lr": required}).defaults


@pytest.mark.parametrize(("name", "options", "message"), NEGATIVE)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        getattr(optim, name)([_param(1)], **options)


def test_parameters_are_checked() -> None:
    with pytest.raises(ArgumentError, match="optimizer got an empty parameter list"):
        optim.SGD([])
    with pytest.raises(ArgumentTypeError, match="iterable of Tensors or dicts, but got Tensor"):
        optim.SGD(_param(1))  # type: ignore[arg-type]
    with pytest.raises(
        ArgumentTypeError, match="can only optimize Tensors, but one of the params is int"
    ):
        optim.SGD([1])
    with pytest.raises(ArgumentTypeError, match="ordered collections"):
        optim.SGD([{"params": {_param(1)}}])
    shared = _param(1)
    with pytest.raises(ArgumentError, match="appear in more than one parameter group"):
        optim.SGD([{"params": shared}, {"params": [shared]}])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optim.SGD([shared, shared])


def test_a_state_of_another_shape_is_refused_and_changes_nothing() -> None:
    one, two = optim.SGD([_param(1)]), optim.SGD([_param(1), _param(1)], lr=7.0)
    with pytest.raises(ArgumentError, match="doesn't match the size of optimizer's group"):
        two.load_state_dict(one.state_dict())
    assert two.param_groups[0]["lr"] == 7.0
    groups = optim.SGD([{"params": _param(1)}, {"params": _param(1)}])
    with pytest.raises(ArgumentError, match="different number of parameter groups"):
        two.load_state_dict(groups.state_dict())
