"""Schedules against PyTorch: the rates of 60 epochs, and going on from a saved state."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distgrad import optim
from distgrad.optim import lr_scheduler, swa_utils
from distgrad.tensor import Tensor, wrap

Make = Callable[[Any, Any], Any]  # (lr_scheduler module, optimizer) -> scheduler


class Half:
    """A factor with a state of its own."""

    def __init__(self) -> None:
        self.base = 0.5

    def __call__(self, x: float) -> float:
        return self.base**x


MAKERS: dict[str, Make] = {
    "lambda": lambda s, o: s.LambdaLR(o, [lambda e: 0.9**e, lambda e: 1 / (e + 1)]),
    "lambda object": lambda s, o: s.LambdaLR(o, Half()),
    "multiplicative": lambda s, o: s.MultiplicativeLR(o, lambda e: 0.95),
    "step": lambda s, o: s.StepLR(o, 4, gamma=0.5),
    "multistep": lambda s, o: s.MultiStepLR(o, [3, 3, 9, 41], gamma=0.5),
    "constant": lambda s, o: s.ConstantLR(o, factor=0.25, total_iters=6),
    "constant default": lambda s, o: s.ConstantLR(o),
    "linear": lambda s, o: s.LinearLR(o, start_factor=0.1, end_factor=0.8, total_iters=7),
    "exponential": lambda s, o: s.ExponentialLR(o, 0.9),
    "polynomial": lambda s, o: s.PolynomialLR(o, total_iters=12, power=2.0),
    "cosine": lambda s, o: s.CosineAnnealingLR(o, T_max=8, eta_min=0.01),
    "restarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, T_0=4, T_mult=2, eta_min=0.01),
    "restarts alike": lambda s, o: s.CosineAnnealingWarmRestarts(o, T_0=5),
    "one cycle": lambda s, o: s.OneCycleLR(o, max_lr=[1.0, 2.0], total_steps=61),
    "one cycle, three phases": lambda s, o: s.OneCycleLR(
        o, max_lr=1.0, epochs=4, steps_per_epoch=16, three_phase=True, anneal_strategy="linear"
    ),
    "cyclic": lambda s, o: s.CyclicLR(o, 0.01, [0.1, 0.5], step_size_up=4, step_size_down=9),
    "cyclic after a constant": lambda s, o: (
        s.ConstantLR(o),
        s.CyclicLR(o, 0.01, 0.5, step_size_up=4),
    )[1],
    "cyclic, half as high": lambda s, o: s.CyclicLR(
        o, [0.01, 0.02], 1.0, step_size_up=5, mode="triangular2", base_momentum=[0.5, 0.6]
    ),
    "cyclic, falling": lambda s, o: s.CyclicLR(
        o, 0.1, 1.0, 3, mode="exp_range", gamma=0.97, cycle_momentum=False
    ),
    "cyclic, own scale": lambda s, o: s.CyclicLR(o, 0.1, 1.0, 3, scale_fn=Half()),
    "cyclic, own scale of steps": lambda s, o: s.CyclicLR(
        o, 0.1, 1.0, 3, scale_fn=lambda x: 1 / (x + 1), scale_mode="iterations"
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
    "sequential of restarts": lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o, total_iters=3), s.CosineAnnealingWarmRestarts(o, 7)], milestones=[3]
    ),
    "sequential of sequential": lambda s, o: s.SequentialLR(
        o,
        [
            s.SequentialLR(o, [s.StepLR(o, 3), s.ExponentialLR(o, 0.5)], milestones=[5]),
            s.ConstantLR(o, factor=0.1, total_iters=4),
        ],
        milestones=[9],
    ),
    "sequential of chained": lambda s, o: s.SequentialLR(
        o,
        [s.ChainedScheduler([s.StepLR(o, 3), s.ExponentialLR(o, 0.5)]), s.ConstantLR(o)],
        milestones=[6],
    ),
    "chained of sequential": lambda s, o: s.ChainedScheduler(
        [s.SequentialLR(o, [s.StepLR(o, 3), s.ExponentialLR(o, 0.5)], [4]), s.ConstantLR(o)]
    ),
    "chained": lambda s, o: s.ChainedScheduler(
        [s.ConstantLR(o, factor=0.1, total_iters=4), s.ExponentialLR(o, 0.95)]
    ),
    "chained, with optimizer": lambda s, o: s.ChainedScheduler(
        [s.LinearLR(o), s.MultiStepLR(o, [5, 9])], optimizer=o
    ),
}
SWA: dict[str, Make] = {
    "swa": lambda s, o: s.SWALR(o, 0.05),
    "swa, linear": lambda s, o: s.SWALR(o, [0.05, 0.5], 7, "linear"),
    "swa at once": lambda s, o: s.SWALR(o, 0.5, anneal_epochs=0),
}
CLOSED = ["step", "multistep", "constant", "linear", "exponential", "polynomial", "cosine"]


def _optimizer(momentum: float = 0.9, lr: Any = 0.1) -> optim.SGD:
    a, b = (wrap(np.ones(1, "float32")).requires_grad_() for _ in "ab")
    other = lr * 3 if isinstance(lr, Tensor) else 0.3
    return optim.SGD([{"params": a}, {"params": b, "lr": other}], lr=lr, momentum=momentum)


def _theirs(torch: Any, lr: Any = 0.1) -> Any:
    a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    other = lr * 3 if torch.is_tensor(lr) else 0.3
    return torch.optim.SGD([{"params": a}, {"params": b, "lr": other}], lr=lr, momentum=0.9)


pytestmark = [  # the nested ones warn when they are made, there and here
    pytest.mark.filterwarnings(f"ignore:Detected call of:UserWarning:{module}")
    for module in (r"distgrad\.optim\.lr_scheduler\.several", r"torch\.optim\.lr_scheduler")
]


def _rates(optimizer: Any, scheduler: Any, epochs: int) -> list[list[float]]:
    rates = []
    for _ in range(epochs):
        last = [float(lr) for lr in scheduler.get_last_lr()]
        rates.append([*last, *(g["momentum"] for g in optimizer.param_groups)])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.torch
@pytest.mark.parametrize("name", [*MAKERS, *SWA])
def test_rates_state_and_options_equal_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.optim import swa_utils as torch_swa

    theirs, ours = _theirs(torch), _optimizer()
    make, parts = MAKERS.get(name), (lr_scheduler, torch.optim.lr_scheduler)
    if make is None:
        make, parts = SWA[name], (swa_utils, torch_swa)
    one, other = make(parts[0], ours), make(parts[1], theirs)
    np.testing.assert_array_equal(_rates(ours, one, 60), _rates(theirs, other, 60))
    assert one.state_dict() == other.state_dict()
    for mine, group in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert {k: v for k, v in mine.items() if k != "params"} == {
            k: v for k, v in group.items() if k != "params"
        }


@pytest.mark.torch
@pytest.mark.parametrize("name", MAKERS)
def test_a_rate_kept_in_a_tensor_is_changed_there_as_in_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    theirs = _theirs(torch, torch.tensor(0.1, dtype=torch.float64))
    ours = _optimizer(lr=wrap(np.array(0.1)))
    kept = ours.param_groups[0]["lr"]
    make = MAKERS[name]
    one, other = make(lr_scheduler, ours), make(torch.optim.lr_scheduler, theirs)
    np.testing.assert_allclose(_rates(ours, one, 20), _rates(theirs, other, 20), rtol=1e-12)
    assert ours.param_groups[0]["lr"] is kept
    assert isinstance(one.get_last_lr()[0], Tensor)
    assert one.get_last_lr()[0] is not kept


@pytest.mark.torch
@pytest.mark.parametrize("name", [*CLOSED, "restarts", "restarts alike", "lambda"])
def test_an_epoch_given_uses_the_closed_form_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    theirs, ours = _theirs(torch), _optimizer()
    one, other = MAKERS[name](lr_scheduler, ours), MAKERS[name](torch.optim.lr_scheduler, theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for epoch in (9, 2, 30):
            for optimizer, scheduler in ((ours, one), (theirs, other)):
                optimizer.step()
                scheduler.step(epoch)
            assert one.get_last_lr() == other.get_last_lr()
        if name.startswith("restarts"):
            one.step(4.25)
            other.step(4.25)
            assert one.get_last_lr() == other.get_last_lr()


@pytest.mark.torch
@pytest.mark.parametrize("name", ["step", "cosine", "linear", "cyclic", "one cycle", "multistep"])
def test_a_schedule_begun_at_a_later_epoch_is_that_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    rates = []
    for optimizer, package in (
        (_optimizer(), lr_scheduler),
        (_theirs(torch), torch.optim.lr_scheduler),
    ):
        first = MAKERS[name](package, optimizer)
        _rates(optimizer, first, 5)
        makers: dict[str, Make] = {
            "step": lambda s, o: s.StepLR(o, 4, gamma=0.5, last_epoch=4),
            "cosine": lambda s, o: s.CosineAnnealingLR(o, T_max=8, last_epoch=4),
            "linear": lambda s, o: s.LinearLR(o, total_iters=7, last_epoch=4),
            "cyclic": lambda s, o: s.CyclicLR(o, 0.01, 0.1, 4, last_epoch=4),
            "one cycle": lambda s, o: s.OneCycleLR(o, max_lr=1.0, total_steps=61, last_epoch=4),
            "multistep": lambda s, o: s.MultiStepLR(o, [3, 9], last_epoch=4),
        }
        rates.append(_rates(optimizer, makers[name](package, optimizer), 8))
    np.testing.assert_array_equal(*rates)


@pytest.mark.parametrize("name", MAKERS)
def test_a_saved_schedule_goes_on_with_the_same_bits(name: str) -> None:
    make = MAKERS[name]
    whole = _optimizer()
    expected = _rates(whole, make(lr_scheduler, whole), 20)
    first = _optimizer()
    scheduler = make(lr_scheduler, first)
    _rates(first, scheduler, 9)
    state = scheduler.state_dict()
    if name not in ("multistep", "chained, with optimizer"):  # a Counter's keys are numbers
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
        {"min_lr": 0.02, "eps": 0.01, "factor": 0.5},
        {"threshold": 0.5, "factor": 0.9},
    ],
)
def test_plateaus_are_found_as_torch_finds_them(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    theirs, ours = _theirs(torch), _optimizer()
    one = lr_scheduler.ReduceLROnPlateau(ours, patience=2, **options)
    other = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, patience=2, **options)
    measures = np.random.default_rng(0).standard_normal(60).cumsum()
    measures[20] = np.nan
    for measure in measures:
        one.step(measure)
        other.step(measure)
        assert one.get_last_lr() == other.get_last_lr()
        assert one.state_dict() == other.state_dict()


def test_stepping_before_the_optimizer_warns() -> None:
    optimizer = _optimizer()
    optimizer.step()  # before the schedule was made: it does not count
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match=r"before `optimizer\.step"):
        scheduler.step()
    optimizer.step()
    scheduler.step()
    lr_scheduler.ExponentialLR(optimizer, 0.5).step()  # not the first schedule


def test_a_step_that_was_replaced_after_the_schedule_warns() -> None:
    optimizer = _optimizer()
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    optimizer.step = lambda closure=None: None  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="has been overridden"):
        scheduler.step()


def test_a_schedule_of_ones_own_knows_that_it_is_asked_by_step() -> None:
    asked = []

    class Own(lr_scheduler.LRScheduler):
        def get_lr(self) -> list[Any]:
            asked.append((self._get_lr_called_within_step, self.last_epoch, self._step_count))
            return [0.5 for _ in self.base_lrs]

    optimizer = _optimizer()
    scheduler = Own(optimizer)
    scheduler.get_lr()
    optimizer.step()
    scheduler.step()
    assert asked == [(True, 0, 1), (False, 0, 1), (True, 1, 2)]
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.5]


def _adagrad() -> optim.Adagrad:
    return optim.Adagrad([wrap(np.ones(1)).requires_grad_()])


BAD: list[tuple[Callable[[Any, Any], Any], type[Exception], str]] = [
    (lambda s, o: s.ReduceLROnPlateau(o, factor=1.0), ValueError, r"Factor should be < 1\.0"),
    (lambda s, o: s.ReduceLROnPlateau(o, "x"), ValueError, "mode x is unknown!"),
    (lambda s, o: s.ReduceLROnPlateau(o, min_lr=[1]), ValueError, "expected 2 min_lrs, got 1"),
    (lambda s, o: s.LambdaLR(o, [abs]), ValueError, "Expected 2 lr_lambdas, but got 1"),
    (lambda s, o: s.ConstantLR(o, 2), ValueError, "expected to be between 0 and 1"),
    (lambda s, o: s.LinearLR(o, 0), ValueError, "greater than 0 and less or equal"),
    (lambda s, o: s.CyclicLR(o, 0.1, 1, mode="x"), ValueError, "mode is invalid"),
    (lambda s, o: s.CyclicLR(o, [0.1], 1), ValueError, "base_lr has 1 values, param_groups has 2"),
    (lambda s, o: s.CyclicLR(_adagrad(), 0.1, 1), ValueError, "must support momentum or beta1"),
    (lambda s, o: s.OneCycleLR(o, 1.0), ValueError, "either total_steps OR"),
    (lambda s, o: s.OneCycleLR(o, 1.0, 3, pct_start=2.0), ValueError, "between 0 and 1 pct_start"),
    (lambda s, o: s.OneCycleLR(o, 1.0, -3), ValueError, "Expected positive integer total_steps"),
    (lambda s, o: s.OneCycleLR(o, 1.0, 3, anneal_strategy="x"), ValueError, "must be one of 'cos'"),
    (lambda s, o: s.CosineAnnealingWarmRestarts(o, 0), ValueError, "integer T_0, but got 0"),
    (lambda s, o: s.CosineAnnealingWarmRestarts(o, 2, 0), ValueError, "integer T_mult >= 1"),
    (lambda s, o: s.CosineAnnealingWarmRestarts(o, 2).step(-1), ValueError, "non-negative epoch"),
    (lambda s, o: s.SequentialLR(o, [], []), ValueError, "expects at least one scheduler"),
    (lambda s, o: s.SequentialLR(o, [s.StepLR(o, 1)], [1]), ValueError, "number of milestone poin"),
    (lambda s, o: s.SequentialLR(o, [1], []), TypeError, "should have `optimizer`"),
    (lambda s, o: s.ChainedScheduler([]), ValueError, "at least one scheduler to be chained"),
    (
        lambda s, o: s.ChainedScheduler([s.StepLR(o, 1), s.StepLR(_adagrad(), 1)]),
        ValueError,
        "belong to the same optimizer",
    ),
    (
        lambda s, o: s.SequentialLR(o, [s.ReduceLROnPlateau(o)], []),
        ValueError,
        "does not support `ReduceLROnPlateau`",
    ),
    (lambda s, o: s.StepLR(3, 1), TypeError, "int is not an Optimizer"),
    (lambda s, o: s.StepLR(o, 1, last_epoch=3), KeyError, "'initial_lr' is not specified"),
    (lambda s, o: s.LRScheduler(o), NotImplementedError, "^$"),
    (lambda s, o: swa_utils.SWALR(o, 1.0, -1), ValueError, "must be equal or greater than 0"),
    (lambda s, o: swa_utils.SWALR(o, [1.0]), ValueError, "swa_lr has 1 values"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_bad_arguments_are_refused(make: Make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(lr_scheduler, _optimizer())
