"""Threads of BLAS, and switches of precision and determinism."""

import subprocess
import sys

import pytest

import distgrad as dg


def test_threads_are_set_while_the_process_runs() -> None:
    before = dg.get_num_threads()
    try:
        dg.set_num_threads(1)
        assert dg.get_num_threads() == 1
    finally:
        dg.set_num_threads(before)
    with pytest.raises(ValueError, match="expects a positive integer"):
        dg.set_num_threads(0)
    with pytest.raises(TypeError, match="expects an int"):
        dg.set_num_threads(1.5)  # type: ignore[arg-type]
    assert dg.get_num_interop_threads() == 1


def test_promises_are_kept() -> None:
    dg.use_deterministic_algorithms(True, warn_only=True)
    assert dg.are_deterministic_algorithms_enabled()
    assert dg.get_deterministic_debug_mode() == 1
    dg.set_deterministic_debug_mode("default")
    assert not dg.are_deterministic_algorithms_enabled()
    with pytest.raises(ValueError, match="is none of 0, 1, 2"):
        dg.set_deterministic_debug_mode("never")
    dg.set_float32_matmul_precision("high")
    assert dg.get_float32_matmul_precision() == "high"
    dg.set_float32_matmul_precision("highest")
    with pytest.raises(RuntimeError, match="is none of 'highest'"):
        dg.set_float32_matmul_precision("low")  # type: ignore[arg-type]
    assert not dg.set_flush_denormal(True)


def test_questions_about_gpus_have_true_answers() -> None:
    program = """
import sys, distgrad as dg
assert "cupy" not in sys.modules
if not dg.cuda.is_available():
    assert dg.cuda.device_count() == 0 and not dg.cuda.is_initialized()
    assert dg.cuda.memory_allocated() == 0
    dg.cuda.manual_seed_all(3)
    dg.cuda.empty_cache()
    assert dg.accelerator.current_accelerator() is None
    for call in (dg.cuda.current_device, dg.cuda.synchronize, dg.cuda.get_device_name):
        try:
            call()
        except RuntimeError as error:
            print(error)
assert not dg.backends.mps.is_available() and not dg.backends.cudnn.is_available()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    if done.stdout:
        assert done.stdout.count("CuPy") == 3


@pytest.mark.torch
def test_cuda_without_a_gpu_does_not_touch_the_random_numbers() -> None:
    if dg.cuda.is_available():
        pytest.skip("there is a GPU")
    dg.manual_seed(0)
    expected = dg.rand(1).item()
    dg.manual_seed(0)
    dg.cuda.manual_seed(5)
    assert dg.rand(1).item() == expected
