"""The stub of class Tensor is what the table of operations says."""

from distgrad.tensor import Tensor
from distgrad.testing import stubs


def test_the_stub_is_up_to_date():
    assert stubs.PATH.read_text() == stubs.generate(), "run: python -m distgrad.testing.stubs"


def test_every_public_method_has_a_line():
    text = stubs.generate()
    missing = [
        name
        for name in vars(Tensor)
        if not name.startswith("_") and f" {name}(" not in text and f" {name}:" not in text
    ]
    assert missing == ["nelement"] and " nelement = numel" in text


def test_signatures_are_those_of_the_operations():
    text = stubs.generate()
    assert "def narrow(self, dim: builtins.int, start: builtins.int, " in text
    assert "def reshape(self, *shape: builtins.int) -> Tensor: ..." in text
    assert "def mul_(self, other: TensorLike) -> Tensor: ..." in text
    assert "def __getitem__(self, index: Any) -> Tensor: ..." in text
