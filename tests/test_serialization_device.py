"""Files and loaders of tensors on a device, without one: CuPy's stand-in."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

import distgrad as dg
from distgrad.testing import standin
from distgrad.utils.data import DataLoader, Subset, TensorDataset


@pytest.fixture(autouse=True)
def _standin() -> Iterator[None]:
    with standin.installed():
        standin.ledger.refused.clear()
        yield
        assert not standin.ledger.refused


def saved(value: Any) -> io.BytesIO:
    file = io.BytesIO()
    dg.save(value, file)
    file.seek(0)
    return file


def test_tensors_return_to_their_device_or_to_another_one() -> None:
    x = dg.arange(6, device="cuda").reshape(2, 3)
    file = saved([x, x.t(), x[1], dg.ones(2, device="cuda", dtype=dg.bfloat16)])
    for form, place in (
        (None, "cuda:0"),
        ("cpu", "cpu"),
        ({"cuda:0": "cpu"}, "cpu"),
        (lambda storage, place: storage, "cpu"),
        (lambda storage, place: storage.cuda(), "cuda:0"),
        (lambda storage, place: storage.cuda().cpu(), "cpu"),
        (lambda storage, place: None, "cuda:0"),
    ):
        file.seek(0)
        a, b, c, d = dg.load(file, map_location=form)
        assert {str(t.device) for t in (a, b, c, d)} == {place}
        assert a.tolist() == x.tolist() and b.tolist() == x.t().tolist()
        a[1, 1] = 9
        assert b[1, 1].item() == c[1].item() == 9 and d.tolist() == [1, 1]


@pytest.mark.parametrize("nested", [False, True])
def test_rows_of_tensors_on_a_device_stay_there(nested: bool) -> None:
    source: Any = TensorDataset(dg.arange(5, device="cuda"), dg.arange(5))
    loader = DataLoader(Subset(source, range(5)) if nested else source, 2, num_workers=nested)
    batches = list(loader)
    assert [b[0].tolist() for b in batches] == [b[1].tolist() for b in batches]
    assert str(batches[0][0].device) == "cuda:0" and str(batches[0][1].device) == "cpu"


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_lie_in_page_locked_memory(workers: int) -> None:
    source = [{"x": dg.ones(2), "pair": (1, "a")}] * 3
    loader = DataLoader(source, 2, pin_memory=True, num_workers=workers)  # type: ignore[arg-type]
    batch = next(iter(loader))
    assert batch["x"].is_pinned() and batch["pair"][0].is_pinned()
    assert batch["pair"][1] == ("a", "a") and batch["x"].tolist() == [[1, 1], [1, 1]]
