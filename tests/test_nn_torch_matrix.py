"""All configurations of layers against PyTorch: state, values, gradients, training, copies."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from test_nn_modules import CASES

import distgrad as dg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

PAIR = (dg, torch)


class Config(NamedTuple):
    """A layer of either library, its inputs, and how it is called."""

    label: str
    build: Callable[[Any], Any]
    inputs: tuple[Any, ...]  # shapes of normals, or arrays
    call: Callable[..., Any] = lambda lib, module, *x: module(*x)
    loose: bool = False  # first values come from normals or matrix factors: not all bits agree

    def __str__(self) -> str:
        return self.label


def layer(name: str, *args: Any, inputs: tuple[Any, ...], **options: Any) -> Config:
    shown = [*map(str, args), *(f"{k}={v}" for k, v in options.items())]
    label = f"{name}({', '.join(shown)})"
    return Config(label, lambda lib: getattr(lib.nn, name)(*args, **options), inputs)


def ints(high: int, *shape: int) -> Any:
    return np.random.default_rng(3).integers(0, high, shape)


def signs(*shape: int) -> Any:
    return np.random.default_rng(3).choice([-1.0, 1.0], shape)


def positives(*shape: int) -> Any:
    return np.random.default_rng(3).uniform(0.1, 0.9, shape)


class Fixed(NamedTuple):
    """An operand that needs no gradient."""

    array: Any


# ---------------------------------------------------------------------- layers without parameters
PLAIN = [
    # PyTorch's gradient of this one is not the derivative of its values.
    layer("CrossMapLRN2d", 3, inputs=(Fixed(positives(2, 5, 3, 4)),)),
    layer("CrossMapLRN2d", 4, alpha=0.1, beta=0.5, k=2, inputs=(Fixed(positives(2, 7, 3, 4)),)),
    layer("MaxPool1d", 2, return_indices=True, inputs=((2, 3, 8),)),
    layer("MaxPool2d", 3, stride=2, padding=1, inputs=((3, 7, 8),)),
    layer("AdaptiveMaxPool2d", 2, return_indices=True, inputs=((2, 3, 5, 6),)),
    layer("FractionalMaxPool2d", 2, output_size=3, inputs=((2, 3, 7, 8),)),
    layer("FractionalMaxPool3d", 2, output_ratio=0.5, inputs=((1, 2, 6, 7, 8),)),
    layer("Softmax2d", inputs=((3, 4, 5),)),
    layer("GLU", inputs=((2, 3, 6),)),
    layer("RReLU", 0.1, 0.3, inputs=((4, 5),)),
    layer("Dropout", 0.4, inputs=((4, 5),)),
    layer("Dropout1d", 0.4, inputs=((4, 5, 3),)),
    layer("Dropout2d", 0.4, inputs=((4, 5, 3, 2),)),
    layer("Dropout3d", 0.4, inputs=((4, 5, 3, 2, 2),)),
    layer("AlphaDropout", 0.4, inputs=((4, 5),)),
    layer("FeatureAlphaDropout", 0.4, inputs=((4, 5, 3),)),
    layer("Upsample", scale_factor=2, mode="trilinear", inputs=((1, 2, 2, 3, 2),)),
    layer("Unflatten", 1, (2, -1), inputs=((3, 6),)),
    layer("CosineSimilarity", dim=0, inputs=((3, 4), (3, 4))),
    Config(
        "dropout of a transposed tensor",
        lambda lib: lib.nn.Dropout(0.5),
        ((3, 4, 5),),
        lambda lib, module, x: module(x.transpose(0, 2)),
    ),
]
_LOSSES: list[tuple[str, tuple[Any, ...], list[dict[str, Any]]]] = [
    ("L1Loss", ((3, 4), (3, 4)), [{}, {"reduction": "sum"}, {"reduction": "none"}]),
    ("MSELoss", ((3, 4), (3, 4)), [{}, {"reduction": "sum"}, {"reduction": "none"}]),
    ("SmoothL1Loss", ((3, 4), (3, 4)), [{}, {"beta": 0.5}, {"reduction": "none"}]),
    ("HuberLoss", ((3, 4), (3, 4)), [{}, {"delta": 0.5}, {"reduction": "sum"}]),
    ("CrossEntropyLoss", ((5, 4), ints(4, 5)),
     [{}, {"label_smoothing": 0.1}, {"ignore_index": 1}, {"reduction": "none"}]),
    ("CrossEntropyLoss", ((2, 4, 3), ints(4, 2, 3)), [{}, {"reduction": "sum"}]),
    ("CrossEntropyLoss", ((3, 4), Fixed(positives(3, 4))), [{}, {"label_smoothing": 0.2}]),
    ("NLLLoss", ((5, 4), ints(4, 5)), [{}, {"ignore_index": 2}, {"reduction": "sum"}]),
    ("BCEWithLogitsLoss", ((3, 4), Fixed(positives(3, 4))), [{}, {"reduction": "none"}]),
    ("BCELoss", (positives(3, 4), Fixed(positives(3, 4) ** 2)), [{}, {"reduction": "sum"}]),
    ("KLDivLoss", ((3, 4), Fixed(positives(3, 4))),
     [{"reduction": "batchmean"}, {"reduction": "sum"}, {"reduction": "sum", "log_target": True}]),
    ("PoissonNLLLoss", ((3, 4), Fixed(positives(3, 4))),
     [{}, {"full": True}, {"reduction": "sum"}]),
    ("PoissonNLLLoss", (positives(3, 4), Fixed(positives(3, 4))), [{"log_input": False}]),
    ("GaussianNLLLoss", ((3, 4), (3, 4), positives(3, 4)), [{}, {"full": True}]),
    ("HingeEmbeddingLoss", ((3, 4), Fixed(signs(3, 4))), [{}, {"margin": 0.5}]),
    ("SoftMarginLoss", ((3, 4), Fixed(signs(3, 4))), [{}, {"reduction": "none"}]),
    ("MarginRankingLoss", ((3,), (3,), Fixed(signs(3))), [{}, {"margin": 0.3}]),
    ("CosineEmbeddingLoss", ((3, 4), (3, 4), Fixed(signs(3))), [{}, {"margin": 0.2}]),
    ("MultiMarginLoss", ((3, 4), ints(4, 3)), [{}, {"p": 2, "margin": 0.5}]),
    ("MultiLabelMarginLoss", ((2, 4), np.array([[3, 0, -1, 1], [0, -1, 1, 2]])), [{}]),
    ("MultiLabelSoftMarginLoss", ((3, 4), Fixed((signs(3, 4) + 1) / 2)), [{}]),
    ("TripletMarginLoss", ((3, 4), (3, 4), (3, 4)), [{}, {"swap": True, "p": 1}]),
    ("TripletMarginWithDistanceLoss", ((3, 4), (3, 4), (3, 4)), [{}, {"swap": True}]),
    ("CTCLoss", ((6, 2, 4), ints(3, 2, 3) + 1, np.array([6, 5]), np.array([3, 2])),
     [{"zero_infinity": True}, {"reduction": "sum"}]),
]  # fmt: skip
PLAIN += [layer(n, inputs=inputs, **o) for n, inputs, options in _LOSSES for o in options]
PLAIN += [
    Config(
        "CrossEntropyLoss(weight)",
        lambda lib: lib.nn.CrossEntropyLoss(lib.tensor([0.5, 1.0, 2.0, 0.25])),
        ((5, 4), ints(4, 5)),
    ),
    Config(
        "BCEWithLogitsLoss(pos_weight)",
        lambda lib: lib.nn.BCEWithLogitsLoss(pos_weight=lib.tensor([0.5, 1.0, 2.0, 0.25])),
        ((5, 4), Fixed(positives(5, 4))),
    ),
]

# ---------------------------------------------------------------------- recurrent layers
_RECURRENT = [
    ("RNN", {}), ("RNN", {"nonlinearity": "relu", "num_layers": 2}),
    ("RNN", {"bidirectional": True, "bias": False, "batch_first": True}),
    ("GRU", {}), ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("GRU", {"bias": False, "batch_first": True}), ("GRU", {"num_layers": 3, "dropout": 0.3}),
    ("LSTM", {}), ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
    ("LSTM", {"bias": False, "batch_first": True}), ("LSTM", {"num_layers": 2, "dropout": 0.5}),
    ("LSTM", {"proj_size": 3, "bias": False}),
]  # fmt: skip
_LENGTHS = [2, 5, 4]


def _packed(batch_first: bool) -> Callable[..., Any]:
    def call(lib: Any, module: Any, x: Any) -> Any:
        rnn = lib.nn.utils.rnn
        pack = functools.partial(
            rnn.pack_padded_sequence, batch_first=batch_first, enforce_sorted=False
        )
        out, state = module(pack(x, _LENGTHS))
        return rnn.pad_packed_sequence(out, batch_first=batch_first)[0], state

    return call


def _with_state(options: dict[str, Any]) -> Callable[..., Any]:
    def call(lib: Any, module: Any, x: Any, h: Any, *c: Any) -> Any:
        return module(x, (h, *c) if c else h)

    return call


def _recurrent() -> Iterator[Config]:
    for name, options in _RECURRENT:
        plain = layer(name, 3, 4, inputs=((5, 3, 3),), **options)
        first = options.get("batch_first", False)
        yield plain
        yield plain._replace(
            label=f"packed {plain}", inputs=((3, 5, 3) if first else (5, 3, 3),),
            call=_packed(first),
        )  # fmt: skip
        yield plain._replace(label=f"single {plain}", inputs=((5, 3),))
        layers = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
        states = [(layers, 5 if first else 3, options.get("proj_size", 0) or 4)]
        states += [(*states[0][:2], 4)] * (name == "LSTM")
        yield plain._replace(
            label=f"{plain} with a state", inputs=((5, 3, 3), *states), call=_with_state(options)
        )
    for name in ("RNNCell", "GRUCell", "LSTMCell"):
        states = ((2, 4), (2, 4)) if name == "LSTMCell" else ((2, 4),)
        for more in ({}, {"bias": False}):
            cell = layer(name, 3, 4, inputs=((2, 3), *states), **more)
            yield cell._replace(call=_with_state({}))
            yield cell._replace(label=f"single {cell}", inputs=((3,),))
    yield layer("RNNCell", 3, 4, nonlinearity="relu", inputs=((2, 3),))


# ---------------------------------------------------------------------- attention
def _masked(lib: Any, module: Any, x: Any) -> Any:
    square = lib.nn.Transformer.generate_square_subsequent_mask(4, dtype=x.dtype)
    return module(x, mask=square, is_causal=True)


def _padded(lib: Any, module: Any, x: Any) -> Any:
    hidden = np.zeros((3, 4), bool)
    hidden[1, 2:] = True
    return module(x, src_key_padding_mask=lib.tensor(hidden))


def _decoder_masks(lib: Any, module: Any, x: Any, memory: Any) -> Any:
    square = lib.nn.Transformer.generate_square_subsequent_mask(4, dtype=x.dtype)
    return module(x, memory, tgt_mask=square)


_ENCODERS: list[dict[str, Any]] = [
    {"dropout": 0.0}, {"dropout": 0.2}, {"dropout": 0.2, "batch_first": True, "activation": "gelu"},
    {"norm_first": True, "bias": False, "dropout": 0.1, "batch_first": True},
]  # fmt: skip


def _attention() -> Iterator[Config]:
    for options in _ENCODERS:
        first = options.get("batch_first", False)
        shape, longer = ((3, 4, 8), (3, 6, 8)) if first else ((4, 3, 8), (6, 3, 8))
        yield layer("TransformerEncoderLayer", 8, 2, 16, inputs=(shape,), **options)
        yield layer("TransformerDecoderLayer", 8, 2, 16, inputs=(shape, longer), **options)

        def encoder(lib: Any, options: Any = options) -> Any:
            one = lib.nn.TransformerEncoderLayer(8, 2, 16, **options)
            return lib.nn.TransformerEncoder(one, 2, lib.nn.LayerNorm(8), False)

        yield Config(f"encoder({options}) with a causal mask", encoder, (shape,), _masked)
        yield Config(f"encoder({options}) with padding", encoder, (shape,), _padded)

        def decoder(lib: Any, options: Any = options) -> Any:
            one = lib.nn.TransformerDecoderLayer(8, 2, 16, **options)
            return lib.nn.TransformerDecoder(one, 2)

        yield Config(f"decoder({options})", decoder, (shape, longer), _decoder_masks)
    yield layer("Transformer", 8, 2, 1, 1, 16, dropout=0.1, inputs=((6, 2, 8), (4, 2, 8)))
    yield Config(
        "encoder with an activation module",
        lambda lib: lib.nn.TransformerEncoderLayer(8, 2, 16, activation=lib.nn.SiLU()),
        ((4, 3, 8),),
    )
    for options in ({}, {"batch_first": True, "dropout": 0.3}, {"add_bias_kv": True}):
        yield layer("MultiheadAttention", 8, 2, inputs=((4, 3, 8),) * 3, **options)._replace(
            call=lambda lib, module, q, k, v: module(q, k, v)
        )


# ---------------------------------------------------------------------- parametrized layers
def _symmetric(lib: Any) -> Any:
    class Symmetric(lib.nn.Module):  # type: ignore[name-defined,misc]
        def forward(self, x: Any) -> Any:
            return x.triu() + x.triu(1).mT

        def right_inverse(self, x: Any) -> Any:
            return x.triu()

    linear = lib.nn.Linear(4, 4)
    return lib.nn.utils.parametrize.register_parametrization(linear, "weight", Symmetric())


def _old(name: str) -> Callable[[Any], Any]:
    def build(lib: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return getattr(lib.nn.utils, name)(lib.nn.Linear(4, 5))

    return build


def _parametrized() -> Iterator[Config]:
    def make(name: str, base: str, args: tuple[Any, ...], **options: Any) -> Callable[[Any], Any]:
        def build(lib: Any) -> Any:
            how = getattr(lib.nn.utils.parametrizations, name)
            return how(getattr(lib.nn, base)(*args), **options)

        return build

    vectors, images = ((3, 4),), ((2, 4, 5),)
    for dim in (0, 1, None):
        label = f"weight_norm(dim={dim})"
        yield Config(label, make("weight_norm", "Linear", (4, 5), dim=dim), vectors)
    yield Config("weight_norm(Conv1d)", make("weight_norm", "Conv1d", (4, 3, 3)), images)
    spectral = functools.partial(make, "spectral_norm")
    yield Config(
        "spectral_norm", spectral("Linear", (4, 5), n_power_iterations=2), vectors, loose=True
    )
    yield Config(
        "spectral_norm(ConvTranspose1d)", spectral("ConvTranspose1d", (4, 3, 3)), images, loose=True
    )
    for kind in (None, "matrix_exp", "cayley", "householder"):
        for sizes in ((4, 4), (4, 6)):
            build = make("orthogonal", "Linear", sizes, orthogonal_map=kind)
            yield Config(f"orthogonal({sizes}, {kind})", build, vectors, loose=True)
    yield Config("symmetric", _symmetric, vectors)
    yield Config("older weight_norm", _old("weight_norm"), vectors)
    yield Config("older spectral_norm", _old("spectral_norm"), vectors, loose=True)


# ---------------------------------------------------------------------- networks
def _tied(lib: Any) -> Any:
    net = lib.nn.Sequential(lib.nn.Embedding(5, 4), lib.nn.Tanh(), lib.nn.Linear(4, 5, bias=False))
    net[2].weight = net[0].weight
    return net


def _images(lib: Any) -> Any:
    nn = lib.nn
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, groups=2), nn.GroupNorm(3, 6), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(6, 5),
    )  # fmt: skip


def _by_name(lib: Any) -> Any:
    nn = lib.nn
    return nn.ModuleDict(
        {
            "bend": nn.Tanh(),
            "turn": nn.Linear(4, 4),
            "steps": nn.ModuleList(nn.Linear(4, 4) for _ in range(3)),
            "scales": nn.ParameterList(lib.ones(4) for _ in range(2)),
            "shifts": nn.ParameterDict({"a": lib.zeros(4)}),
        }
    )


def _call_by_name(lib: Any, parts: Any, x: Any) -> Any:
    for step in parts["steps"]:
        x = parts["bend"](step(x))
    return parts["turn"](x) * parts["scales"][0] * parts.scales[1] + parts["shifts"]["a"]


def _bag(lib: Any, module: Any, index: Any, offsets: Any, weights: Any) -> Any:
    return module(index, offsets, per_sample_weights=weights)


NETWORKS = [
    Config("embedding tied to the output", _tied, (ints(5, 3, 2),), loose=True),
    Config("convolutional network", _images, ((4, 3, 8, 8),)),
    Config(
        "EmbeddingBag with offsets and weights",
        lambda lib: lib.nn.EmbeddingBag(6, 3, mode="sum"),
        (ints(6, 7), np.array([0, 2, 5]), (7,)), _bag, loose=True,
    ),
    layer("AdaptiveLogSoftmaxWithLoss", 8, 12, [3, 7], div_value=2.0,
          inputs=((6, 8), ints(12, 6))),
    layer("AdaptiveLogSoftmaxWithLoss", 8, 9, [4], head_bias=True, inputs=((6, 8), ints(9, 6))),
    layer("AdaptiveLogSoftmaxWithLoss", 8, 9, [4], inputs=((8,), np.array(7))),
    layer("LinearCrossEntropyLoss", 4, 5, bias=True, inputs=((6, 4), ints(5, 6))),
    Config("modules by name", _by_name, ((3, 4),), _call_by_name),
    layer("LazyLinear", 3, inputs=((2, 4),)),
    *(layer(f"LazyConv{n}d", 4, 3, padding=1, inputs=((2, 3, *(4,) * n),)) for n in (1, 2, 3)),
    *(layer(f"LazyConvTranspose{n}d", 4, 2, bias=False, inputs=((2, 3, *(4,) * n),))
      for n in (1, 2, 3)),
    *(layer(f"LazyBatchNorm{n}d", inputs=((5, 3, *(3,) * n),))._replace(loose=True)
      for n in (1, 2, 3)),
    *(layer(f"LazyInstanceNorm{n}d", inputs=((2, 3, *(4,) * n),))._replace(loose=True)
      for n in (1, 2, 3)),
]  # fmt: skip

KNOWN = [
    Config(str(c), functools.partial(lambda lib, c: getattr(lib.nn, c.name)(*c.args, **c.options),
                                     c=c), c.inputs, loose=c.name.startswith("Embedding"))
    for c in CASES if not c.options.get("inplace")
]  # fmt: skip
NEW = [*PLAIN, *_recurrent(), *_attention(), *_parametrized(), *NETWORKS]


# ---------------------------------------------------------------------- both libraries
def _built(config: Config, dtype: str = "float32") -> list[Any]:
    """Return the layer of both libraries, lazy ones finished, with PyTorch's values."""
    made = []
    for lib in PAIR:
        lib.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PyTorch's hints at nested tensors
            module = config.build(lib)
        if config.label.startswith("Lazy"):
            module(*_operands(config, "float32", lib)[0])
        made.append(module)
    if dtype == "float64":
        made = [module.double() for module in made]
    return made


def _same_values(ours: Any, theirs: Any) -> None:
    ours.load_state_dict({k: dg.tensor(v.numpy()) for k, v in theirs.state_dict().items()})


def _operands(config: Config, dtype: str, lib: Any) -> tuple[list[Any], list[Any]]:
    """Return the inputs of one library, and those among them that require grad."""
    numbers, made = np.random.default_rng(0), []
    for spec in config.inputs:
        fixed = isinstance(spec, Fixed)
        array = spec.array if fixed else spec
        array = array if isinstance(array, np.ndarray) else numbers.standard_normal(array)
        if array.dtype.kind == "f":
            array = array.astype(dtype)
        made.append(lib.tensor(array, requires_grad=array.dtype.kind == "f" and not fixed))
    return made, [x for x in made if x.requires_grad]


def _flat(out: Any) -> list[Any]:
    """Return all float tensors of a nested result."""
    if isinstance(out, tuple | list):
        return [x for one in out for x in _flat(one)]
    return [out] if hasattr(out, "is_floating_point") and out.is_floating_point() else []


def _run(config: Config, module: Any, lib: Any, x: list[Any]) -> list[Any]:
    lib.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return _flat(config.call(lib, module, *x))


def _loss(lib: Any, outs: list[Any]) -> Any:
    numbers, total = np.random.default_rng(1), 0
    for out in outs:
        target = numbers.standard_normal(tuple(out.shape)).astype(str(out.dtype).split(".")[1])
        total = total + (out - lib.tensor(target)).square().sum() / max(target.size, 1)
    return total


def _close(a: Any, b: Any, tolerance: float, what: str) -> None:
    """Compare with the size of the largest element as the measure."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape and a.dtype == b.dtype, (what, a.shape, b.shape, a.dtype, b.dtype)
    scale = max(float(np.abs(b).max(initial=0)), 1e-3)
    error = float(np.abs(a - b).max(initial=0)) / scale
    assert error <= tolerance, f"{what}: relative error {error:.2g}"


def _close_states(ours: Any, theirs: Any, tolerance: float) -> None:
    a, b = ours.state_dict(), theirs.state_dict()
    assert list(a) == list(b)
    for name, value in b.items():
        _close(a[name].numpy(), value.numpy(), tolerance, name)


# ---------------------------------------------------------------------- the tests
@pytest.mark.parametrize("config", NEW, ids=str)
def test_printed_form_state_and_first_values_are_those_of_torch(config: Config) -> None:
    ours, theirs = _built(config)
    assert repr(ours) == repr(theirs).replace("torch.", "distgrad.")
    _close_states(ours, theirs, 1e-5 if config.loose else 0.0)
    for name, p in theirs.named_parameters():
        assert ours.get_parameter(name).requires_grad == p.requires_grad


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("config", NEW, ids=str)
def test_outputs_and_gradients_are_those_of_torch(config: Config, training: bool) -> None:
    ours, theirs = _built(config, "float64")
    _same_values(ours, theirs)
    found: list[Any] = []
    for lib, module in zip(PAIR, (ours, theirs), strict=True):
        module.train(training)
        x, inputs = _operands(config, "float64", lib)
        outs = _run(config, module, lib, x)
        loss = _loss(lib, outs)
        if loss.requires_grad:
            loss.backward()
        grads = [t.grad for t in (*inputs, *module.parameters())]
        found.append(([o.detach() for o in outs], grads))
    (outs, grads), (expected, wanted) = found
    assert len(outs) == len(expected) > 0
    for place, (a, b) in enumerate(zip(outs, expected, strict=True)):
        _close(a.numpy(), b.numpy(), 1e-10, f"output {place}")
    for place, (a, b) in enumerate(zip(grads, wanted, strict=True)):
        assert (a is None) == (b is None), place
        if b is not None:
            _close(a.numpy(), b.numpy(), 1e-9, f"gradient {place}")
    _close_states(ours, theirs, 1e-10)


def _trained(config: Config, dtype: str, optimizer: str) -> None:
    ours, theirs = _built(config, dtype)
    _same_values(ours, theirs)
    losses: list[list[float]] = []
    for lib, module in zip(PAIR, (ours, theirs), strict=True):
        # Gradients that should be 0, such as those of attention's key biases, are noise: Adam
        # divides them by their size, but for eps.
        options = {"momentum": 0.9} if optimizer == "SGD" else {"eps": 1e-3}
        update = getattr(lib.optim, optimizer)(module.parameters(), lr=0.01, **options)
        x, _ = _operands(config, dtype, lib)
        losses.append([])
        for _ in range(20):
            update.zero_grad()
            loss = _loss(lib, _run(config, module, lib, x))
            loss.backward()
            update.step()
            losses[-1].append(loss.item())
    tolerance = 1e-6 if dtype == "float32" else 1e-10
    np.testing.assert_allclose(losses[0], losses[1], rtol=tolerance, atol=0)
    _close_states(ours, theirs, 10 * tolerance if dtype == "float32" else tolerance)


TRAINABLE = [c for c in (*KNOWN, *NEW) if any(True for _ in c.build(dg).parameters())]


@pytest.mark.parametrize(("dtype", "optimizer"), [("float32", "SGD"), ("float64", "Adam")])
@pytest.mark.parametrize("config", TRAINABLE, ids=str)
def test_twenty_steps_of_training_are_those_of_torch(
    config: Config, dtype: str, optimizer: str
) -> None:
    _trained(config, dtype, optimizer)


@pytest.mark.parametrize("config", TRAINABLE, ids=str)
def test_state_dicts_go_both_ways(config: Config) -> None:
    ours, theirs = _built(config)
    numbers = np.random.default_rng(2)
    given = {
        k: np.asarray(numbers.standard_normal(tuple(v.shape))).astype(v.numpy().dtype)
        for k, v in theirs.state_dict().items()
    }
    assert not any(ours.load_state_dict({k: dg.tensor(v) for k, v in given.items()}))
    back = {k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()}
    assert not any(theirs.load_state_dict(back))
    _close_states(ours, theirs, 0.0)
    assert dict(ours.state_dict()._metadata) == dict(theirs.state_dict()._metadata)


@pytest.mark.parametrize("config", NEW, ids=str)
def test_copies_and_pickles_compute_the_same(config: Config) -> None:
    ours, _ = _built(config)
    if config.label.startswith("older"):
        pytest.skip("the hook's weight is no leaf")
    copies = [copy.deepcopy(ours)]
    if not dg.nn.utils.parametrize.is_parametrized(ours):
        copies.append(pickle.loads(pickle.dumps(ours)))
    x, _ = _operands(config, "float32", dg)
    expected = _run(config, ours.eval(), dg, x)
    for one in copies:
        assert repr(one) == repr(ours)
        for a, b in zip(_run(config, one.eval(), dg, x), expected, strict=True):
            np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())
        for p, q in zip(one.parameters(), ours.parameters(), strict=True):
            assert not np.shares_memory(p.array, q.array)
