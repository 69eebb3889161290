"""Tensors beside NumPy, DLPack, other processes, and PyTorch's older names of types."""

import copy
import multiprocessing
import pickle
from typing import Any

import numpy as np
import pytest

import distgrad as dg


# ---------------------------------------------------------------------- NumPy
def test_functions_of_numpy_return_tensors() -> None:
    x = dg.tensor([1.0, 4.0])
    root = np.sqrt(x)
    assert isinstance(root, dg.Tensor) and root.tolist() == [1, 2]
    assert np.isnan(x).dtype is dg.uint8  # as in PyTorch
    assert (np.ones(2) * x).tolist() == [1, 4]
    assert (np.float64(2) * x).dtype is dg.float32
    assert np.shares_memory(np.asarray(x), x.numpy())
    assert not np.shares_memory(np.array(x), x.numpy())
    with pytest.raises(ValueError, match="copy"):
        np.asarray(x, dtype=np.float64, copy=False)
    with pytest.raises(RuntimeError, match="requires grad"):
        np.sqrt(x.requires_grad_())


def test_memory_is_shared_with_numpy_both_ways() -> None:
    array = np.zeros(3)
    tensor = dg.from_numpy(array)
    tensor += 1
    assert array.tolist() == [1, 1, 1] and tensor.numpy() is array
    data = bytearray(8)
    view = dg.frombuffer(data, dtype=dg.int16, count=2, offset=4)
    view[0] = 258
    assert data[4:6] == b"\x02\x01"
    with pytest.raises(ValueError, match="int16, count=5"):
        dg.frombuffer(data, dtype=dg.int16, count=5)
    with pytest.raises(ValueError, match="no multiple of the element size 8"):
        dg.frombuffer(data, dtype=dg.int64, offset=1)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["float32", "float64", "int64", "uint8", "bool", "complex64"])
def test_dlpack_shares_memory_with_pytorch_both_ways(name: str) -> None:
    torch = pytest.importorskip("torch")
    ours = dg.ones(2, 3, dtype=getattr(dg, name)).T
    theirs = torch.from_dlpack(ours)
    assert theirs.stride() == ours.stride() and theirs.data_ptr() == ours.data_ptr()
    theirs = torch.ones(2, 3, dtype=getattr(torch, name)).T
    again = dg.from_dlpack(theirs)
    again[0] = 0
    assert again.dtype is getattr(dg, name) and not bool(theirs[0].any())
    capsule = dg.from_dlpack(torch.utils.dlpack.to_dlpack(theirs))
    assert capsule.data_ptr() == theirs.data_ptr()


def test_copies_and_pickles_keep_what_a_leaf_is() -> None:
    p = dg.nn.Parameter(dg.ones(2))
    for other in (pickle.loads(pickle.dumps(p)), copy.deepcopy(p)):
        assert type(other) is dg.nn.Parameter and other.requires_grad
        assert other.data_ptr() != p.data_ptr()
    assert copy.copy(p).data_ptr() == p.data_ptr()


# ---------------------------------------------------------------------- other processes
def change(tensors: Any, back: Any) -> None:
    shared, view, own, parameter = tensors
    shared[0, 0] = 5
    view[0] = 6
    own[0] = 7
    with dg.no_grad():
        parameter += 1
    back.put(tensors[0])


def test_shared_tensors_are_seen_by_other_processes() -> None:
    shared, own = dg.zeros(2, 3).share_memory_(), dg.zeros(1)
    parameter = dg.nn.Linear(1, 1).share_memory().weight
    before = parameter.item()
    assert shared.is_shared() and shared[1].is_shared() and parameter.is_shared()
    assert not own.is_shared() and shared.share_memory_() is shared
    context = multiprocessing.get_context("spawn")
    back = context.SimpleQueue()
    process = context.Process(target=change, args=((shared, shared[:, 2], own, parameter), back))
    process.start()
    returned = back.get()
    process.join()
    assert shared[0].tolist() == [5, 0, 6] and own.item() == 0
    assert parameter.item() == pytest.approx(before + 1)
    returned[1, 1] = 9
    assert shared[1, 1].item() == 9


# ---------------------------------------------------------------------- types by older names
def test_older_types_make_and_recognise_tensors() -> None:
    x = dg.FloatTensor(2, 3)
    assert x.shape == (2, 3) and isinstance(x, dg.FloatTensor)
    assert not isinstance(x, dg.LongTensor) and not isinstance(1.0, dg.FloatTensor)
    assert dg.LongTensor([1, 2]).tolist() == [1, 2]
    assert dg.ByteTensor(dg.Size([2])).shape == (2,)
    assert x.new(2).dtype is dg.float32 and x.new([1, 2]).tolist() == [1, 2]
    assert dg.typename(x) == "distgrad.FloatTensor" and str(dg.IntTensor) == "distgrad.IntTensor"
    assert dg.typename([]) == "list" and dg.is_storage(x.untyped_storage())
    with pytest.raises(TypeError, match="expected distgrad"):
        dg.DoubleTensor(x)
    with pytest.raises(TypeError, match="legacy constructor expects device type: cpu"):
        dg.FloatTensor([1.0], device="cuda")


def test_default_type() -> None:
    try:
        dg.set_default_tensor_type("torch.DoubleTensor")
        assert dg.zeros(1).dtype is dg.float64
    finally:
        dg.set_default_tensor_type(dg.FloatTensor)
    with pytest.raises(TypeError, match="only floating-point types"):
        dg.set_default_tensor_type(dg.LongTensor)


def test_what_a_tensor_is_not() -> None:
    x = dg.ones(1)
    assert not (x.is_sparse or x.is_quantized or x.is_meta or x.is_mkldnn or x.is_pinned())
    assert not hasattr(x, "__cuda_array_interface__")
    if not dg.cuda.is_available():
        with pytest.raises(RuntimeError, match="pin_memory"):
            x.pin_memory()
