"""Files with the public names of GPT-2 and ResNet are loaded, and mean what they mean there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distgrad as dg
from distgrad.serialization import save_file

torch = pytest.importorskip("torch")
TF = pytest.importorskip("torch.nn.functional")


def example(name: str) -> Any:
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------- GPT-2
def gpt2_file(vocabulary: int, context: int, width: int, layers: int) -> dict[str, Any]:
    """Return random weights with the names and shapes of transformers' GPT2Model."""
    torch.manual_seed(0)
    shapes = {"wte.weight": (vocabulary, width), "wpe.weight": (context, width)}
    for n in range(layers):
        shapes |= {
            f"h.{n}.ln_1.weight": (width,), f"h.{n}.ln_1.bias": (width,),
            f"h.{n}.attn.bias": (1, 1, context, context), f"h.{n}.attn.masked_bias": (),
            f"h.{n}.attn.c_attn.weight": (width, 3 * width),
            f"h.{n}.attn.c_attn.bias": (3 * width,),
            f"h.{n}.attn.c_proj.weight": (width, width), f"h.{n}.attn.c_proj.bias": (width,),
            f"h.{n}.ln_2.weight": (width,), f"h.{n}.ln_2.bias": (width,),
            f"h.{n}.mlp.c_fc.weight": (width, 4 * width), f"h.{n}.mlp.c_fc.bias": (4 * width,),
            f"h.{n}.mlp.c_proj.weight": (4 * width, width), f"h.{n}.mlp.c_proj.bias": (width,),
        }  # fmt: skip
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def gpt2_logits(state: dict[str, Any], tokens: Any, heads: int) -> Any:
    """Return what transformers' GPT2LMHeadModel computes, written out."""
    width = state["wte.weight"].shape[1]
    x = state["wte.weight"][tokens] + state["wpe.weight"][: tokens.shape[1]]
    layers = sum(name.endswith("ln_1.bias") for name in state)

    def norm(x: Any, name: str) -> Any:
        return TF.layer_norm(x, (width,), state[name + ".weight"], state[name + ".bias"])

    def conv1d(x: Any, name: str) -> Any:
        return x @ state[name + ".weight"] + state[name + ".bias"]

    for n in range(layers):
        q, k, v = conv1d(norm(x, f"h.{n}.ln_1"), f"h.{n}.attn.c_attn").split(width, 2)
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(2, 3) / (width // heads) ** 0.5
        future = torch.ones(scores.shape[-2:]).triu(1).bool()
        y = scores.masked_fill(future, float("-inf")).softmax(3) @ v
        x = x + conv1d(y.transpose(1, 2).flatten(2), f"h.{n}.attn.c_proj")
        inner = TF.gelu(conv1d(norm(x, f"h.{n}.ln_2"), f"h.{n}.mlp.c_fc"), approximate="tanh")
        x = x + conv1d(inner, f"h.{n}.mlp.c_proj")
    return norm(x, "ln_f") @ state["wte.weight"].T


@pytest.mark.parametrize("form", ["safetensors", "bin", "with head"])
def test_gpt2_loads_by_its_public_names(form: str, tmp_path: Path) -> None:
    state = gpt2_file(50, 16, 24, 2)
    if form == "safetensors":
        path = tmp_path / "model.safetensors"
        save_file({k: dg.from_numpy(v.numpy()) for k, v in state.items()}, path)
    else:
        path = tmp_path / "pytorch_model.bin"
        whole = state
        if form == "with head":
            whole = {f"transformer.{name}": value for name, value in state.items()}
            whole["lm_head.weight"] = state["wte.weight"]
        torch.save(whole, path)
    gpt2 = example("gpt2_weights")
    model = gpt2.load_gpt2(path, head_size=8)
    tokens = torch.randint(50, (2, 10))
    expected = gpt2_logits(state, tokens, heads=3)
    found = model(dg.from_numpy(tokens.numpy())).detach().numpy()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
    back = gpt2.to_public(model)
    for name, value in back.items():
        np.testing.assert_array_equal(value.detach().numpy(), state[name].numpy())


# ---------------------------------------------------------------------- ResNet
def resnet_file(depths: list[int], bottleneck: bool, width: int, classes: int) -> dict[str, Any]:
    """Return random weights with the names and shapes of torchvision's ResNet."""
    torch.manual_seed(0)
    state: dict[str, Any] = {}

    def conv(name: str, outputs: int, inputs: int, size: int) -> None:
        state[name + ".weight"] = torch.randn(outputs, inputs, size, size) * 0.2

    def norm(name: str, count: int) -> None:
        for part in ("weight", "bias", "running_mean"):
            state[f"{name}.{part}"] = torch.randn(count) * 0.5
        state[f"{name}.running_var"] = torch.rand(count) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", width, 3, 7), norm("bn1", width)
    inputs = width
    for stage, depth in enumerate(depths):
        inner = width * 2**stage
        outputs = inner * (4 if bottleneck else 1)
        for place in range(depth):
            name = f"layer{stage + 1}.{place}"
            sizes = [(inner, inputs, 1), (inner, inner, 3), (outputs, inner, 1)]
            for i, s in enumerate(sizes if bottleneck else [(inner, inputs, 3), (inner, inner, 3)]):
                conv(f"{name}.conv{i + 1}", *s), norm(f"{name}.bn{i + 1}", s[0])
            if place == 0 and (inputs != outputs or stage):
                (
                    conv(f"{name}.downsample.0", outputs, inputs, 1),
                    norm(f"{name}.downsample.1", outputs),
                )
            inputs = outputs
    state["fc.weight"], state["fc.bias"] = torch.randn(classes, inputs), torch.randn(classes)
    return state


def resnet_logits(state: dict[str, Any], x: Any) -> Any:
    """Return what torchvision's ResNet computes in evaluation, written out."""

    def conv(x: Any, name: str, stride: int) -> Any:
        weight = state[name + ".weight"]
        return TF.conv2d(x, weight, None, stride, weight.shape[-1] // 2)

    def norm(x: Any, name: str) -> Any:
        parts = (state[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return TF.batch_norm(x, *parts)

    x = TF.max_pool2d(norm(conv(x, "conv1", 2), "bn1").relu(), 3, 2, 1)
    blocks = dict.fromkeys(".".join(n.split(".")[:2]) for n in state if n.startswith("layer"))
    for name in blocks:
        stride = 2 if name.endswith(".0") and not name.startswith("layer1") else 1
        deep = f"{name}.conv3.weight" in state
        strides = (1, stride, 1) if deep else (stride, 1)
        y = x
        for i, s in enumerate(strides, 1):
            y = norm(conv(y, f"{name}.conv{i}", s), f"{name}.bn{i}")
            y = y.relu() if i < len(strides) else y
        if f"{name}.downsample.0.weight" in state:
            x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        x = (x + y).relu()
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(
    ("depths", "bottleneck"), [([2, 2, 2, 2], False), ([3, 4, 6, 3], True)], ids=["18", "50"]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_resnet_loads_by_its_public_names(
    depths: list[int], bottleneck: bool, legacy: bool, tmp_path: Path
) -> None:
    state = resnet_file(depths, bottleneck, width=4, classes=5)
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    model = example("resnet_weights").load_resnet(tmp_path / "x.pth")
    assert sorted(model.state_dict()) == sorted(state)
    x = torch.randn(2, 3, 32, 32)
    expected = resnet_logits(state, x).numpy()
    found = model(dg.from_numpy(x.numpy())).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * abs(expected).max())


@pytest.mark.parametrize(
    ("name", "end"), [("gpt2_weights", "tokens 1 2 3"), ("resnet_weights", "classes [")]
)
def test_the_programs_run_without_a_file(
    name: str, end: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [name])
    example(name).main()
    assert capsys.readouterr().out.splitlines()[-1].startswith(end)
