"""The checks of tests/test_gpu_cudnn.py on a real device."""

import pytest

import distgrad as dg
from distgrad.backend.device import device
from distgrad.nn import functional as F
from distgrad.testing import device_cudnn

PLACE = device("cuda:0")
pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def plans():
    """Gives the count of plans made and found; skips where cuDNN is missing."""
    if not dg.backends.cudnn.is_available():
        pytest.skip("cuDNN, or nvidia-cudnn-frontend, is not installed")
    from distgrad.backend.cuda import cudnn

    cudnn._plans.clear()
    cudnn.counts.made = cudnn.counts.found = cudnn.counts.read = 0
    return cudnn.counts


@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("dtype", device_cudnn.DTYPES)
@pytest.mark.parametrize("name", device_cudnn.CONVOLUTIONS)
def test_convolutions_give_the_hosts_results(name, dtype, layout, plans):
    device_cudnn.check_convolution(name, dtype, PLACE, getattr(dg, layout))
    assert plans.made == 3  # forward, and two gradients


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("dtype", device_cudnn.DTYPES)
@pytest.mark.parametrize("name", device_cudnn.ATTENTIONS)
def test_attention_gives_the_hosts_results(name, dtype, packed):
    device_cudnn.check_attention(name, dtype, PLACE, packed=packed)


def test_the_fastest_candidate_gives_the_hosts_results():
    with dg.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        device_cudnn.check_convolution("padded", "bfloat16", PLACE)


def test_dropout_of_attention_draws_the_same_again_in_backward():
    device_cudnn.check_dropout(PLACE)


def test_rows_that_may_look_nowhere_are_zero_and_get_no_gradient():
    device_cudnn.check_closed_rows(PLACE)


def test_plans_on_disk_give_the_same_results(tmp_path, monkeypatch, plans):
    from distgrad.backend.cuda import cudnn

    monkeypatch.setenv("DISTGRAD_PLAN_FOLDER", str(tmp_path))
    q = dg.randn(2, 4, 64, 64, device="cuda").bfloat16()
    want = F.scaled_dot_product_attention(q, q, q, is_causal=True)
    cudnn._plans.clear()
    assert dg.equal(F.scaled_dot_product_attention(q, q, q, is_causal=True), want)
    assert (plans.made, plans.read) == (1, 1)
