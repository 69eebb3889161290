"""The checks of tests/test_gpu_gemm.py on a real device."""

import pytest

from distgrad.backend.device import device
from distgrad.testing import device_products as products

PLACE = device("cuda:0")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", products.DTYPES)
@pytest.mark.parametrize("shapes", products.SHAPES)
def test_every_layout_gives_the_hosts_product(shapes, dtype):
    products.check_layouts(shapes, dtype, PLACE)


def test_alpha_and_beta_may_lie_on_the_device():
    products.check_scalars(PLACE)


@pytest.mark.parametrize("train", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("activation", ["relu", "gelu_tanh", "gelu"])
def test_chains_of_layers_give_the_hosts_results(activation, dtype, train):
    products.check_chain(activation, dtype, PLACE, train=train)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_a_layer_gives_the_hosts_results(dtype, bias):
    products.check_layer(dtype, PLACE, bias=bias)


def test_gradients_are_added_where_they_lie():
    products.check_kept_gradients(PLACE)
