"""Page-locked memory and copies that the host does not wait for, on the stand-in."""

import collections
import gc
import threading
import types
import weakref
from contextlib import nullcontext

import numpy as np
import pytest

import distgrad as dg
from distgrad import nn
from distgrad.backend import pinned
from distgrad.errors import DeviceError
from distgrad.nn.utils.rnn import PackedSequence, pack_sequence
from distgrad.testing import device_copies, standin
from distgrad.utils.data import DataLoader
from distgrad.utils.data.pin import pin_memory


@pytest.fixture
def ledger():
    """One GPU; fails where memory was used or freed during a copy."""
    with standin.installed() as ledger:
        yield ledger
        dg.cuda.synchronize()
        pinned._under_way.clear()
        pinned._held.clear()
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
    target = dg.zeros(2, 3, device="cuda", dtype=dg.float64)
    assert target.copy_(y, non_blocking=True).tolist() == x.tolist()
    assert dg.zeros(0, pin_memory=True).to("cuda", non_blocking=True).shape == (0,)


def test_gradients_go_through_such_copies(ledger):
    x = dg.ones(3, pin_memory=True, requires_grad=True)
    y = x.to("cuda", non_blocking=True)
    (y * dg.arange(3.0, device="cuda")).sum().backward()
    assert x.is_pinned() and np.array_equal(x.grad.numpy(), [0, 1, 2])


VIEWS = {
    "transposed": lambda x: x.permute(2, 0, 1),
    "sliced": lambda x: x[:, 1:],
    "every second": lambda x: x[..., ::2],
    "turned and sliced": lambda x: x.permute(1, 2, 0)[:, ::2],
    "repeated": lambda x: x[:1].expand(3, 3, 4),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_go_without_the_host_both_ways_and_keep_their_order(ledger, name):
    x = dg.arange(24.0).reshape(2, 3, 4)
    there, here = VIEWS[name](x.cuda()), VIEWS[name](x.pin_memory())
    with standin.no_syncs():
        up = here.to("cuda", non_blocking=True)
        down = there.to("cpu", non_blocking=True)
    dg.cuda.synchronize()
    want = VIEWS[name](x)
    assert up.is_cuda and down.is_pinned()
    assert up.tolist() == down.tolist() == want.tolist()
    if name == "transposed":
        assert up.stride() == down.stride() == want.stride()


def test_copies_between_views_of_one_order_go_alone(ledger):
    x = dg.arange(6.0, pin_memory=True).reshape(2, 3)
    target = dg.zeros(2, 3, device="cuda")
    with standin.no_syncs():
        target.t().copy_(x.t(), non_blocking=True)
    assert target.tolist() == x.tolist()


# ---------------------------------------------------------------------- modules and loaders
@pytest.mark.parametrize("how", ["keyword", "position"])
def test_modules_move_without_the_host(ledger, how):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    want = {name: value.tolist() for name, value in model.state_dict().items()}
    model._apply(lambda t: t.pin_memory())
    with standin.no_syncs():
        if how == "keyword":
            model.to("cuda", non_blocking=True)
        else:
            model.to("cuda", None, True)
    assert all(p.is_cuda for p in model.parameters())
    assert {name: value.tolist() for name, value in model.state_dict().items()} == want
    with standin.no_syncs():
        model.to("cpu", non_blocking=True)
    dg.cuda.synchronize()
    assert all(p.is_pinned() for p in model.parameters())
    assert {name: value.tolist() for name, value in model.state_dict().items()} == want


def test_packed_sequences_are_pinned_and_move_without_the_host(ledger):
    rows = pack_sequence([dg.ones(2), dg.ones(3)], enforce_sorted=False)
    there = rows.pin_memory()
    assert isinstance(there, PackedSequence) and there.is_pinned() and not rows.is_pinned()
    assert there.sorted_indices.is_pinned() and there.batch_sizes is rows.batch_sizes
    uploads = ledger.uploads
    with standin.no_syncs():
        moved = there.to("cuda", non_blocking=True)
    assert ledger.uploads == uploads
    assert moved.sorted_indices.tolist() == [1, 0] and moved.data.is_cuda


class Own:
    """Pins itself."""

    def pin_memory(self):
        return "pinned by itself"


class Named(dict):
    """A mapping with an attribute."""

    note = None


class Odd(list):
    """A sequence that is made of something else."""

    def __init__(self, a, b):
        super().__init__([a, b])


Pair = collections.namedtuple("Pair", "x y")


def test_whatever_a_batch_is_made_of_is_pinned(ledger):
    x = dg.ones(2)
    named = Named(x=x)
    named.note = "kept"
    batch = {
        "pair": Pair(x, [x, (x, "text", b"bytes", None, 3)]),
        "kinds": collections.defaultdict(list, x=x),
        "named": named,
        "odd": Odd(x, range(2)),
        "queue": collections.deque([x]),
        "view": types.MappingProxyType({"x": x}),
        "own": [Own()],
        "there": x.cuda(),
    }
    made = pin_memory(batch)
    pair = made["pair"]
    assert type(pair) is Pair and pair.x.is_pinned() and pair.y[0].is_pinned()
    assert pair.y[1][0].is_pinned() and pair.y[1][1:] == ("text", b"bytes", None, 3)
    assert type(made["kinds"]) is collections.defaultdict and made["kinds"]["x"].is_pinned()
    assert type(made["named"]) is Named and made["named"].note == "kept"
    assert made["named"]["x"].is_pinned() and not named["x"].is_pinned()
    assert type(made["odd"]) is Odd and made["odd"][0].is_pinned() and made["odd"][1] == [0, 1]
    assert type(made["queue"]) is collections.deque and made["queue"][0].is_pinned()
    assert made["view"]["x"].is_pinned() and made["own"] == ["pinned by itself"]
    assert made["there"] is batch["there"]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_that_are_threads_pin_beside_the_program(ledger, monkeypatch, workers):
    threads = set()
    alloc = pinned.empty

    def empty(*args):
        threads.add(threading.current_thread().name)
        return alloc(*args)

    monkeypatch.setattr(pinned, "empty", empty)
    loader = DataLoader(dg.arange(6.0), 2, pin_memory=True, num_workers=workers)
    assert all(batch.is_pinned() for batch in loader)
    here = threading.current_thread().name
    assert threads == {f"DataLoader worker {i}" for i in range(workers)} or threads == {here}
    assert (here in threads) == (not workers)


def test_workers_pin_for_the_gpu_of_the_rank():
    with standin.installed(2) as ledger:
        dg.cuda.set_device(1)
        loader = DataLoader(dg.arange(4.0), 2, pin_memory=True, num_workers=1)
        assert all(batch.is_pinned() for batch in loader)
        assert ledger.contexts == {1}


def test_a_worker_that_cannot_pin_says_so(ledger):
    class Broken:
        def pin_memory(self):
            raise ValueError("no more page-locked memory")

    loader = DataLoader(range(2), num_workers=1, pin_memory=True, collate_fn=lambda batch: Broken())
    with pytest.raises(ValueError, match="no more page-locked memory"):
        list(loader)


def test_the_loader_says_that_its_device_is_not_asked(ledger):
    loader = DataLoader(range(2), pin_memory=True, pin_memory_device="cuda")
    with pytest.warns(UserWarning, match="pin_memory_device is deprecated"):
        assert all(batch.is_pinned() for batch in loader)
    assert len(list(DataLoader(range(2), pin_memory_device="cuda"))) == 2


def _trained(pin, workers, beside):
    """Return the losses of a training that asks for its batches in this way."""
    dg.manual_seed(0)
    data = dg.utils.data.TensorDataset(dg.randn(12, 4), dg.randint(0, 3, (12,)))
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).cuda()
    optimizer = dg.optim.AdamW(model.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        batches = iter(DataLoader(data, 3, pin_memory=pin, num_workers=workers))
        while True:
            with standin.no_syncs() if beside else nullcontext():
                try:
                    x, y = next(batches)
                except StopIteration:
                    break
                x, y = x.to("cuda", non_blocking=beside), y.cuda(non_blocking=beside)
                loss = nn.functional.cross_entropy(model(x), y)
                del x, y
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            losses.append(loss.detach())
    return [loss.item() for loss in losses]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_fed_from_pinned_memory_never_waits(ledger, workers):
    want = _trained(False, workers, False)
    ledger.latency = 1 << 60
    assert _trained(True, workers, True) == want


# ---------------------------------------------------------------------- streams, saved tensors
def test_memory_that_another_stream_uses_is_kept_without_waiting(ledger):
    side = dg.cuda.Stream()
    with dg.cuda.stream(side):
        x = dg.ones(1000, pin_memory=True).to("cuda", non_blocking=True)
    dg.cuda.current_stream().wait_stream(side)
    memory = weakref.ref(x.array.data.mem)
    ledger.latency = 1 << 60
    with standin.no_syncs():
        x.record_stream(dg.cuda.current_stream())
        x.record_stream(dg.cuda.current_stream())
        view = x[1:]
        y = view * 2
        del x, view
        gc.collect()
        other = dg.ones(1, device="cuda")
        other.record_stream(side)
    for _ in range(2):  # the first finds that nobody has it, the second that its stream is done
        assert memory() is not None
        dg.cuda.synchronize()
        other.record_stream(side)
    assert memory() is None and y.sum().item() == 1998


def test_saved_tensors_go_to_pinned_memory_and_back_without_the_host(ledger):
    x = dg.arange(4.0, device="cuda", requires_grad=True)
    with standin.no_syncs():
        with dg.autograd.graph.save_on_cpu(pin_memory=True):
            y = (x * x).sum()
        assert "to host 16" in str(ledger.trace)
        y.backward()
    assert x.grad.tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("check", device_copies.CHECKS)
def test_copies_give_the_hosts_numbers(ledger, check):
    ledger.latency = 50
    check(dg.device("cuda:0"))
