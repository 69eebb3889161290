"""Checks of copies between the host and a GPU that the host does not wait for.

``tests/test_gpu_pinned.py`` runs them on the stand-in for CuPy, ``tests/gpu`` on a real GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import distgrad as dg
from distgrad import nn
from distgrad.backend.device import device
from distgrad.tensor import Tensor
from distgrad.utils.data import DataLoader, TensorDataset

__all__ = ["CHECKS", "prefetched"]

_BATCHES = 6
_VIEWS: tuple[Callable[[Any], Any], ...] = (
    lambda t: t, lambda t: t.permute(2, 0, 1), lambda t: t[:, 1:], lambda t: t[:1],
)  # fmt: skip


def prefetched(batches: Any, place: device) -> Iterator[list[Tensor]]:
    """Yield batches on a GPU, each copied there on a stream of its own while the last is used."""
    side, here = dg.cuda.Stream(place), dg.cuda.current_stream(place)
    ready: list[Tensor] | None = None
    for batch in [*batches, None]:
        given, ready = ready, None
        if given is not None:
            here.wait_stream(side)
            for tensor in given:
                tensor.record_stream(here)
        if batch is not None:
            with dg.cuda.stream(side):
                ready = [tensor.to(place, non_blocking=True) for tensor in batch]
        if given is not None:
            yield given


def check_feeding(place: device) -> None:
    """Check that a training fed from pinned memory, a batch ahead, takes the steps of the host."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((_BATCHES * 50, n)) for n in (40, 3)]
    data = TensorDataset(*map(dg.from_numpy, arrays))
    start = dg.from_numpy(rng.standard_normal((3, 40)))
    results = []
    for pin in (False, True):
        weight = nn.Parameter(start.clone() if not pin else start.to(place))
        optimizer = dg.optim.SGD([weight], lr=0.05)
        loader = DataLoader(data, 50, pin_memory=pin, num_workers=int(pin))
        for x, y in prefetched(loader, place) if pin else loader:
            optimizer.zero_grad()
            (x @ weight.t() - y).square().mean().backward()
            del x, y  # its memory is given to others while it may still be read
            optimizer.step()
        results.append(weight.detach().cpu().numpy())
    np.testing.assert_allclose(results[1], results[0], rtol=1e-10)


def check_both_ways(place: device) -> None:
    """Check views that go to the GPU and come back, while the GPU is busy."""
    x = dg.arange(60.0).reshape(3, 4, 5)
    for view in _VIEWS:
        there = view(x.pin_memory()).to(place, non_blocking=True)
        twice = there * 2
        back = twice.to("cpu", non_blocking=True)
        assert back.is_pinned() and back.stride() == twice.stride()
        dg.cuda.synchronize(place)
        assert back.tolist() == (view(x) * 2).tolist()


def check_saved(place: device) -> None:
    """Check saved tensors that wait on the host."""
    x = dg.arange(1000.0, device=place, requires_grad=True)
    with dg.autograd.graph.save_on_cpu(pin_memory=True):
        y = ((x * x).exp() * 0 + x * x).sum()
    y.backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.nan_to_num().cpu().numpy()[:5], [0, 2, 4, 6, 8])


CHECKS = (check_feeding, check_both_ways, check_saved)
