"""Page-locked memory and copies that the host does not wait for, on the stand-in."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.backend import pinned
from distgrad.errors import DeviceError
from distgrad.testing import standin


@pytest.fixture
def ledger():
    """One GPU; fails where memory was used or freed during a copy."""
    with standin.installed() as ledger:
        yield ledger
        dg.cuda.synchronize()
        pinned._under_way.clear()
        assert not ledger.hazards and not ledger.refused


MAKERS = {
    "zeros": lambda **o: dg.zeros(3, 2, **o),
    "tensor": lambda **o: dg.tensor([1.0, 2.0], **o),
    "full": lambda **o: dg.full((2,), 3.0, **o),
    "rand": lambda **o: dg.rand(4, **o),
    "empty_like": lambda **o: dg.empty_like(dg.ones(2, 3), **o),
    "full_like": lambda **o: dg.full_like(dg.ones(2, 3), 5, **o),
    "randn_like": lambda **o: dg.randn_like(dg.ones(2, 3), **o),
    "new_zeros": lambda **o: dg.ones(1).new_zeros(2, 2, **o),
    "new_full": lambda **o: dg.ones(1).new_full((2,), 4, **o),
}


@pytest.mark.parametrize("name", MAKERS)
def test_functions_that_make_tensors_pin_them(ledger, name):
    x = MAKERS[name](pin_memory=True)
    assert x.is_pinned() and x[1:].is_pinned() and not (x + 1).is_pinned()
    assert not MAKERS[name]().is_pinned()


def test_pinning_keeps_values_and_the_order_of_dimensions(ledger):
    x = dg.arange(6.0).reshape(2, 3).t()
    y = x.pin_memory()
    assert y.is_pinned() and y.tolist() == x.tolist() and y.stride() == x.stride()
    assert y.pin_memory() is y and not x.is_pinned()
    with pytest.raises(DeviceError, match="only dense CPU tensors"):
        dg.zeros(2, device="cuda", pin_memory=True)


@pytest.mark.skipif(dg.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_can_be_pinned():
    with pytest.raises(RuntimeError, match="pin_memory"):
        dg.zeros(2, pin_memory=True)


@pytest.mark.parametrize("how", ["to", "cuda", "copy_"])
def test_a_copy_to_the_gpu_goes_on_without_the_host(ledger, how):
    x = dg.arange(4.0).pin_memory()
    target = dg.zeros(4, device="cuda")
    uploads = ledger.uploads
    with standin.no_syncs():
        if how == "to":
            y = x.to("cuda", non_blocking=True)
        else:
            y = x.cuda(non_blocking=True) if how == "cuda" else target.copy_(x, non_blocking=True)
    assert ledger.uploads == uploads and "from host 16" in str(ledger.trace)
    assert y.tolist() == [0, 1, 2, 3]


def test_a_dtype_is_changed_behind_the_copy(ledger):
    x = dg.arange(4, dtype=dg.uint8).pin_memory()
    with standin.no_syncs():
        y = x.to("cuda", dg.float32, non_blocking=True)
    assert "from host 4 " in str(ledger.trace) and y.tolist() == [0, 1, 2, 3]


def test_a_copy_to_the_host_arrives_when_its_stream_was_waited_for(ledger):
    x = dg.arange(4.0, device="cuda")
    with standin.no_syncs():
        y = (x + 1).to("cpu", non_blocking=True)
        z = dg.zeros(4, pin_memory=True)
        z.copy_(x, non_blocking=True)
    assert y.is_pinned() and y.tolist() != [1, 2, 3, 4]
    dg.cuda.synchronize()
    assert y.tolist() == [1, 2, 3, 4] and z.tolist() == [0, 1, 2, 3]


def test_memory_that_is_freed_during_a_copy_lives_until_it_is_over(ledger):
    ledger.latency = 1 << 60
    for _ in range(3):
        y = dg.ones(1000).pin_memory().to("cuda", non_blocking=True)
        y.to("cpu", non_blocking=True)
    dg.cuda.synchronize()
    dg.zeros(1).pin_memory().to("cuda", non_blocking=True)
    assert len(pinned._under_way) == 1


def test_the_stand_in_finds_pinned_memory_that_is_freed_too_early(monkeypatch):
    with standin.installed() as ledger:
        ledger.latency = 1 << 60
        monkeypatch.setattr(pinned, "_under_way", type("Nothing", (list,), {"append": id})())
        dg.ones(1000).pin_memory().to("cuda", non_blocking=True)
        assert "freed during a copy" in str(ledger.hazards)


def test_the_host_that_writes_during_a_copy_is_found():
    with standin.installed() as ledger:
        x = dg.zeros(4).pin_memory()
        x.to("cuda", non_blocking=True)
        x.add_(1)
        dg.cuda.synchronize()
        assert "the host changed memory" in str(ledger.hazards)
        pinned._under_way.clear()


def test_what_cannot_go_alone_is_copied_all_the_same(ledger):
    x = dg.arange(6.0).reshape(2, 3)
    assert x.to("cuda", non_blocking=True).tolist() == x.tolist()
    y = x.pin_memory()
    assert y.t().to("cuda", non_blocking=True).tolist() == x.t().tolist()
    target = dg.zeros(2, 3, device="cuda", dtype=dg.float64)
    assert target.copy_(y, non_blocking=True).tolist() == x.tolist()
    assert dg.zeros(0, pin_memory=True).to("cuda", non_blocking=True).shape == (0,)


def test_gradients_go_through_such_copies(ledger):
    x = dg.ones(3, pin_memory=True, requires_grad=True)
    y = x.to("cuda", non_blocking=True)
    (y * dg.arange(3.0, device="cuda")).sum().backward()
    assert x.is_pinned() and np.array_equal(x.grad.numpy(), [0, 1, 2])
