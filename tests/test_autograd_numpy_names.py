"""NumPy's names for arguments, which PyTorch takes beside its own."""

import inspect

import pytest

import distgrad as dg
from distgrad.autograd.declare import table

A = dg.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


@pytest.mark.parametrize(
    ("call", "same"),
    [
        (lambda: dg.sum(A, axis=1, keepdims=True), lambda: dg.sum(A, 1, True)),
        (lambda: A.sum(axis=1), lambda: A.sum(1)),
        (lambda: dg.add(x1=A, x2=A), lambda: dg.add(A, A)),
        (lambda: dg.relu(x=A), lambda: dg.relu(A)),
        (lambda: dg.pow(a=A, exponent=2), lambda: dg.pow(A, 2)),
        (lambda: dg.cat([A, A], axis=1), lambda: dg.cat([A, A], 1)),
        (lambda: A.unsqueeze(axis=0), lambda: A.unsqueeze(0)),
        (lambda: dg.chunk(A, 2, axis=0)[1], lambda: dg.chunk(A, 2)[1]),
        (lambda: dg.sum(A, axis=0, out=dg.zeros(3)), lambda: dg.sum(A, 0)),
        (lambda: A.clone().sub_(x2=A), lambda: A - A),
        (lambda: dg.std(A, axis=0, keepdims=True), lambda: dg.std(A, 0, keepdim=True)),
    ],
)
def test_numpys_names_mean_the_same_arguments(call, same):
    assert dg.equal(call(), same())


def test_they_hold_under_vmap_and_in_backward():
    x = A.clone().requires_grad_()
    dg.func.vmap(lambda row: row.cumsum(axis=0))(x).sum().backward()
    assert x.grad.tolist() == [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]


@pytest.mark.parametrize(
    "call",
    [
        lambda: dg.sum(A, foo=1),
        lambda: dg.relu(A, axis=0),
        lambda: dg.relu(A, x=A),
        lambda: A.unsqueeze(0, out=A),
        lambda: dg.chunk(A, 2, dim=0, axis=0),
        lambda: dg.sum(A, dim=1, axis=0),
    ],
)
def test_a_name_that_fits_no_argument_is_refused(call):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        call()


@pytest.mark.parametrize("name", sorted(table))
def test_a_call_without_arguments_names_what_is_missing(name):
    with pytest.raises(TypeError, match=r"missing \d+ required"):
        table[name].function()


def test_the_signature_shows_the_names_of_pytorch():
    assert list(inspect.signature(dg.sum).parameters) == ["input", "dim", "keepdim", "dtype", "out"]
    assert inspect.signature(dg.add).parameters["input"].default is inspect.Parameter.empty
