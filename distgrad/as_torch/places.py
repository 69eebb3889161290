"""Which modules of distgrad answer for which module of PyTorch."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

_PACKAGE = "distgrad"
_EXTRA = "distgrad.as_torch.extra"  # what only PyTorch's programs ask for

# modules of distgrad that are none of PyTorch's, or another thing there
_OWN = "as_torch backend config doctor errors launch ops tensor testing typing"

# PyTorch has one file for each of these; distgrad's package answers for all of them
_FAMILIES = {
    "optim": "adadelta adagrad adam adamax adamw asgd lbfgs nadam optimizer radam rmsprop rprop "
    "sgd sparse_adam swa_utils _functional _muon _adafactor",
    "distributions": "bernoulli beta binomial cauchy chi2 continuous_bernoulli dirichlet "
    "distribution exp_family exponential fishersnedecor gamma generalized_pareto geometric gumbel "
    "half_cauchy half_normal independent inverse_gamma kumaraswamy laplace lkj_cholesky log_normal "
    "logistic_normal lowrank_multivariate_normal mixture_same_family multinomial "
    "multivariate_normal negative_binomial normal one_hot_categorical pareto poisson "
    "relaxed_bernoulli relaxed_categorical studentT transformed_distribution uniform von_mises "
    "weibull wishart",
    "nn.modules": "activation adaptive batchnorm channelshuffle container conv distance dropout "
    "flatten fold instancenorm lazy linear loss module normalization padding pixelshuffle pooling "
    "rnn sparse transformer upsampling",
    "nn.utils": "clip_grad convert_parameters init memory_format fusion parametrizations "
    "parametrize prune rnn spectral_norm stateless weight_norm",
    "utils.data": "dataset dataloader sampler distributed",
    "distributed": "distributed_c10d",
    "distributed.checkpoint": "default_planner filesystem metadata planner state_dict_loader "
    "state_dict_saver stateful",
    "nn.parallel": "distributed",
    "profiler": "profiler",
    "_dynamo": "_trace_wrapped_higher_order_op config decorators eval_frame",
    "fx": "graph graph_module interpreter node proxy",
    "onnx": " ".join(f"symbolic_opset{version}" for version in range(7, 21)),
}

# PyTorch's path: where distgrad keeps it
_ELSEWHERE = {
    "nn.modules.module": "nn.module",
    "nn.modules.utils": "nn.modules.sizes",
    "amp.grad_scaler": "amp",
    "amp.autocast_mode": "amp",
    "cuda.amp.grad_scaler": "cuda.amp",
    "cuda.amp.autocast_mode": "cuda.amp",
    "cuda.graphs": "cuda",
    "autograd.grad_mode": "autograd",
    "autograd.anomaly_mode": "autograd.anomaly",
    "storage": "ops.storage",
    "utils.data._utils": "utils.data",
    "utils.data._utils.collate": "utils.data.collate",
    "functional": "",
    "fft": "ops.fft",
    "linalg": "ops.linalg_names",
    "random": "ops.random",
    "special": "ops.special_names",
    "distributed.nn": "distributed.nn.functional",
    "_tensor": "tensor",
    "_jit_internal": "as_torch.extra.jit.annotations",
    "ao.nn": "as_torch.extra.ao",
    "ao.nn.quantized": "as_torch.extra.ao.quantization",
    "autograd.profiler": "as_torch.extra.profiler",
    "distributed._composable": "distributed.fsdp",
    "distributed._composable.fsdp": "distributed.fsdp",
    "distributed._tensor": "as_torch.extra.distributed.tensor",
    "distributed._tensor.experimental": "as_torch.extra.distributed.tensor",
    "distributed.fsdp.fully_sharded_data_parallel": "distributed.fsdp",
    "distributed.fsdp.wrap": "distributed.fsdp",
    "distributed.tensor._utils": "as_torch.extra.distributed.tensor",
    "fx.experimental": "as_torch.extra.fx",
    "fx.experimental.proxy_tensor": "as_torch.extra.fx",
    "fx.experimental.symbolic_shapes": "as_torch.extra.fx",
    "nn.quantized": "as_torch.extra.ao.quantization",
    "quantization": "as_torch.extra.ao.quantization",
}

PROGRAMS = ("distributed.launch", "distributed.run")  # for ``python -m``

# They can be imported, as programs do that may not need them; nothing of them is here.
_EMPTY = (
    "contrib distributed.pipelining distributed.tensor.parallel export mtia "
    "nested package utils.mobile_optimizer"
)


@cache
def sources_of(path: str) -> tuple[str, ...]:
    """Return the modules of distgrad that answer for ``torch.<path>``, the last one first asked.

    Example:
        >>> sources_of("nn.functional"), sources_of("no.such")
        (('distgrad.nn.functional',), ())
    """
    parent, _, last = path.rpartition(".")
    names = [_EXTRA + "." + (path or "top")]
    if path.partition(".")[0] not in _OWN.split():
        names.insert(0, f"{_PACKAGE}.{path}".rstrip("."))
    found = [name for name in names if _exists(name)]
    if path in _ELSEWHERE:
        found.insert(0, f"{_PACKAGE}.{_ELSEWHERE[path]}".rstrip("."))
    elif not found and last in _FAMILIES.get(parent, "").split():
        found = list(sources_of(parent))
    if not found and path in _EMPTY.split():
        found = [_EXTRA]
    return tuple(found)


def _exists(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is no package
        return False
