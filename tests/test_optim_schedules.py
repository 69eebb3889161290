"""Schedules against PyTorch: the rates of 30 epochs, and going on from a saved state."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distgrad import optim
from distgrad.optim import lr_scheduler
from distgrad.tensor import wrap

Make = Callable[[Any, Any], Any]  # (lr_scheduler module, optimizer) -> scheduler

MAKERS: dict[str, Make] = {
    "lambda": lambda s, o: s.LambdaLR(o, [lambda e: 0.9**e, lambda e: 1 / (e + 1)]),
    "multiplicative": lambda s, o: s.MultiplicativeLR(o, lambda e: 0.95),
    "step": lambda s, o: s.StepLR(o, 4, gamma=0.5),
    "multistep": lambda s, o: s.MultiStepLR(o, [3, 3, 9], gamma=0.5),
    "constant": lambda s, o: s.ConstantLR(o, factor=0.25, total_iters=6),
    "linear": lambda s, o: s.LinearLR(o, start_factor=0.1, end_factor=0.8, total_iters=7),
    "exponential": lambda s, o: s.ExponentialLR(o, 0.9),
    "polynomial": lambda s, o: s.PolynomialLR(o, total_iters=12, power=2.0),
    "cosine": lambda s, o: s.CosineAnnealingLR(o, T_max=8, eta_min=0.01),
    "restarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, T_0=4, T_mult=2, eta_min=0.01),
    "one cycle": lambda s, o: s.OneCycleLR(o, max_lr=[1.0, 2.0], total_steps=40),
    "one cycle, three phases": lambda s, o: s.OneCycleLR(
        o, max_lr=1.0, epochs=4, steps_per_epoch=10, three_phase=True, anneal_strategy="linear"
    ),
    "sequential": lambda s, o: s.SequentialLR(
        o,
        [
            s.LinearLR(o, start_factor=0.1, total_iters=5),
            s.CosineAnnealingLR(o, T_max=10),
            s.ExponentialLR(o, 0.9),
        ],
        milestones=[5, 15],
    ),
    "chained": lambda s, o: s.ChainedScheduler(
        [s.ConstantLR(o, factor=0.1, total_iters=4), s.ExponentialLR(o, 0.95)]
    ),
}


def _optimizer(momentum: float = 0.9) -> optim.SGD:
    a, b = (wrap(np.ones(1, "float32")).requires_grad_() for _ in "ab")
    return optim.SGD([{"params": a}, {"params": b, "lr": 0.3}], lr=0.1, momentum=momentum)


def _rates(optimizer: Any, scheduler: Any, epochs: int) -> list[list[float]]:
    rates = []
    for _ in range(epochs):
        rates.append([*scheduler.get_last_lr(), *(g["momentum"] for g in optimizer.param_groups)])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.torch
@pytest.mark.parametrize("name", MAKERS)
def test_rates_equal_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    theirs = torch.optim.SGD([{"params": a}, {"params": b, "lr": 0.3}], lr=0.1, momentum=0.9)
    ours = _optimizer()
    make = MAKERS[name]
    expected = _rates(theirs, make(torch.optim.lr_scheduler, theirs), 30)
    np.testing.assert_array_equal(_rates(ours, make(lr_scheduler, ours), 30), expected)


@pytest.mark.parametrize("name", MAKERS)
def test_a_saved_schedule_goes_on_with_the_same_bits(name: str) -> None:
    make = MAKERS[name]
    whole = _optimizer()
    expected = _rates(whole, make(lr_scheduler, whole), 20)
    first = _optimizer()
    scheduler = make(lr_scheduler, first)
    _rates(first, scheduler, 9)
    state = scheduler.state_dict()
    if name not in ("multistep",):  # a Counter's keys are numbers
        state = json.loads(json.dumps(state))
    second = _optimizer()
    again = make(lr_scheduler, second)
    again.load_state_dict(state)
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(_rates(second, again, 11), expected[9:])


@pytest.mark.torch
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "max"},
        {"threshold_mode": "abs", "cooldown": 2},
        {"mode": "max", "threshold_mode": "abs", "min_lr": [0.05, 0.1]},
    ],
)
def test_plateaus_are_found_as_torch_finds_them(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    theirs = torch.optim.SGD([{"params": a}, {"params": b, "lr": 0.3}], lr=0.1)
    ours = _optimizer(0.0)
    one = lr_scheduler.ReduceLROnPlateau(ours, patience=2, **options)
    other = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, patience=2, **options)
    for measure in np.random.default_rng(0).standard_normal(40).cumsum():
        one.step(measure)
        other.step(measure)
        assert one.get_last_lr() == other.get_last_lr()
        assert one.num_bad_epochs == other.num_bad_epochs


def test_stepping_before_the_optimizer_warns() -> None:
    scheduler = lr_scheduler.StepLR(_optimizer(), 1)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()


def test_an_epoch_given_uses_the_closed_form() -> None:
    optimizer = _optimizer()
    scheduler = lr_scheduler.StepLR(optimizer, 4, gamma=0.5)
    optimizer.step()
    with pytest.warns(UserWarning, match="epoch parameter"):
        scheduler.step(9)
    assert scheduler.get_last_lr() == [0.1 * 0.25, 0.3 * 0.25]


def test_bad_arguments_are_refused() -> None:
    optimizer = _optimizer()
    with pytest.raises(ValueError, match=r"Factor should be < 1\.0"):
        lr_scheduler.ReduceLROnPlateau(optimizer, factor=1.0)
    with pytest.raises(ValueError, match="Expected positive integer T_0, but got 0"):
        lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 0)
    with pytest.raises(ValueError, match="one more than the number of milestone points"):
        lr_scheduler.SequentialLR(optimizer, [lr_scheduler.StepLR(optimizer, 1)], [1])
    with pytest.raises(ValueError, match="either total_steps OR"):
        lr_scheduler.OneCycleLR(optimizer, 1.0)
    with pytest.raises(TypeError, match="int is not an Optimizer"):
        lr_scheduler.StepLR(3, 1)  # type: ignore[arg-type]
