"""Every entry of PyTorch's database of operations, on a few of its samples."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("expecttest")

from distgrad.testing import torch_database as database
from distgrad.testing.torch_known import KNOWN, row_of

pytestmark = pytest.mark.torch


def _checks(row):
    """Return the entry and the checks that a row of known differences is about."""
    name, *rest = row.split(" ")
    return name, rest[:1] or database.CHECKS


@pytest.mark.parametrize("name", sorted(database.by_name()))
def test_every_entry_agrees_or_is_known_to_differ(name):
    results = database.run_entry(name, limit=4)
    texts = [f"{r.check} {f.dtype}: {f.text}" for r in results for f in r.unknown]
    assert not texts, "\n".join(texts[:5])


@pytest.mark.parametrize("row", sorted(KNOWN))
def test_every_known_difference_is_there(row):
    name, checks = _checks(row)
    for every in (False, True):
        for check in checks:
            for result in database.run_entry(name, [check], every=every, limit=20):
                if any(row_of(name, check, f.dtype) == row for f in result.failures):
                    return
    pytest.fail("nothing differs; take the row out of distgrad/testing/torch_known.py")
