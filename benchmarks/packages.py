"""Public packages written for PyTorch train on distgrad as they are, with PyTorch's losses.

    python benchmarks/packages.py                    # all that are installed
    python benchmarks/packages.py timm transformers  # some

Each case makes a small model of a package and trains it for some steps on random numbers, once
under PyTorch and once under ``python -m distgrad.launch --as-torch``, and shows the first number
(mostly the first loss), the largest relative difference of all numbers, and how the time compares,
imports included. Needs torch, and of the packages named below those that are to be run, without
their dependency on torch (``pip install --no-deps``).
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

STEPS = 3
CASES: dict[str, Callable[[], list[float]]] = {}


def case(function: Callable[[], list[float]]) -> Callable[[], list[float]]:
    """Let ``package__what`` be a case of ``package``."""
    CASES[function.__name__] = function
    return function


def train(model: Any, loss_of: Callable[[Any], Any], lr: float = 1e-3) -> list[float]:
    """Return the losses of some steps of SGD, in which rounding grows slowly."""
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def classify(model: Any, size: int) -> list[float]:
    """Return the losses of an image classifier with ten classes on four random images."""
    import torch

    images, labels = torch.randn(4, 3, size, size), torch.randint(0, 10, (4,))
    return train(model, lambda m: torch.nn.functional.cross_entropy(m(images), labels))


def _timm(name: str, size: int) -> Callable[[], list[float]]:
    def run() -> list[float]:
        import timm

        return classify(timm.create_model(name, pretrained=False, num_classes=10), size)

    return run


def _torchvision(name: str, size: int) -> Callable[[], list[float]]:
    def run() -> list[float]:
        import torchvision

        return classify(getattr(torchvision.models, name)(weights=None, num_classes=10), size)

    return run


for _name, _size in {
    "resnet18": 64, "efficientnet_b0": 64, "mobilenetv3_small_050": 64, "convnext_atto": 64,
    "regnetx_002": 64, "vit_tiny_patch16_224": 224, "mixer_s32_224": 224,
}.items():  # fmt: skip
    CASES[f"timm__{_name}"] = _timm(_name, _size)
for _name, _size in {
    "resnet50": 64, "densenet121": 64, "mobilenet_v2": 64, "shufflenet_v2_x0_5": 64, "swin_t": 64,
    "vgg11_bn": 64, "squeezenet1_0": 64,
}.items():  # fmt: skip
    CASES[f"torchvision__{_name}"] = _torchvision(_name, _size)


def _language_model(kind: str, **sizes: int) -> Callable[[], list[float]]:
    def run() -> list[float]:
        import torch
        import transformers

        config = getattr(transformers, f"{kind}Config")(vocab_size=64, **sizes)
        head = {"GPT2": "LMHeadModel", "Bert": "ForMaskedLM"}.get(kind, "ForCausalLM")
        tokens = torch.randint(0, 64, (2, 16))
        model = getattr(transformers, kind + head)(config)
        return train(model, lambda m: m(tokens, labels=tokens).loss)

    return run


CASES["transformers__gpt2"] = _language_model("GPT2", n_embd=32, n_layer=2, n_head=2)
for _name in ("Bert", "Llama"):
    CASES[f"transformers__{_name.lower()}"] = _language_model(
        _name, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )


@case
def lightning__trainer() -> list[float]:
    import lightning
    import torch

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.losses = torch.nn.Linear(8, 3), []

        def training_step(self, batch: Any, index: int) -> Any:
            loss = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    samples = torch.utils.data.TensorDataset(torch.randn(32, 8), torch.randint(0, 3, (32,)))
    trainer = lightning.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    model = Model()
    trainer.fit(model, torch.utils.data.DataLoader(samples, batch_size=8, shuffle=True))
    return model.losses


@case
def torch_geometric__convolutions() -> list[float]:
    import torch
    from torch_geometric.nn import GATConv, GCNConv, SAGEConv

    edges, nodes = torch.randint(0, 10, (2, 40)), torch.randn(10, 8)
    labels = torch.randint(0, 3, (10,))
    layers = torch.nn.ModuleList([GCNConv(8, 16), GATConv(16, 4, heads=2), SAGEConv(8, 3)])

    def loss(model: Any) -> Any:
        x = nodes
        for layer in model:
            x = layer(x.relu(), edges)
        return torch.nn.functional.cross_entropy(x, labels)

    return train(layers, loss)


@case
def gpytorch__exact_gp() -> list[float]:
    import gpytorch
    import torch

    x = torch.linspace(0, 1, 20)
    y = torch.sin(x * 6)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()

    class Model(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(x, y, likelihood)
            self.mean = gpytorch.means.ConstantMean()
            self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

        def forward(self, at: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(at), self.kernel(at))

    model = Model()
    likely = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    return train(model, lambda m: -likely(m(x), y), lr=0.1)


@case
def pyro__svi() -> list[float]:
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import SVI, Trace_ELBO

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    data = torch.randn(20) + 3

    def model(seen: Any) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(seen)):
            pyro.sample("seen", dist.Normal(mean, 1.0), obs=seen)

    def guide(seen: Any) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("mean", dist.Normal(pyro.param("at", torch.tensor(0.0)), scale))

    steps = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    return [float(steps.step(data)) for _ in range(STEPS)]


@case
def stable_baselines3__ppo() -> list[float]:
    from stable_baselines3 import PPO

    agent = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, seed=0, device="cpu")
    agent.learn(128)
    return [float(p.detach().abs().sum()) for p in agent.policy.parameters()]


@case
def torchdiffeq__ode() -> list[float]:
    import torch
    from torchdiffeq import odeint

    net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    start, times = torch.tensor([[2.0, 0.0]]), torch.linspace(0, 1, 5)
    return train(net, lambda m: odeint(lambda t, y: m(y**3), start, times).pow(2).mean())


@case
def nflows__real_nvp() -> list[float]:
    import torch
    from nflows.flows.realnvp import SimpleRealNVP

    data = torch.randn(16, 2)
    return train(SimpleRealNVP(2, 16, 2, 1), lambda m: -m.log_prob(data).mean())


@case
def vit_pytorch__vit() -> list[float]:
    from vit_pytorch import ViT

    sizes = {"dim": 64, "depth": 2, "heads": 2, "mlp_dim": 64}
    return classify(ViT(image_size=32, patch_size=8, num_classes=10, **sizes), 32)


@case
def x_transformers__decoder() -> list[float]:
    import torch
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(dim=64, depth=2, heads=2, rotary_pos_emb=True)
    model = TransformerWrapper(num_tokens=64, max_seq_len=32, attn_layers=layers)
    tokens = torch.randint(0, 64, (2, 33))
    return train(AutoregressiveWrapper(model), lambda m: m(tokens))


@case
def denoising_diffusion_pytorch__unet() -> list[float]:
    import torch
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    model = GaussianDiffusion(Unet(dim=16, dim_mults=(1, 2)), image_size=16, timesteps=20)
    images = torch.rand(2, 3, 16, 16)
    return train(model, lambda m: m(images))


@case
def segmentation_models_pytorch__unet() -> list[float]:
    import segmentation_models_pytorch
    import torch

    model = segmentation_models_pytorch.Unet("resnet18", encoder_weights=None, classes=2)
    images, marks = torch.randn(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
    return train(model, lambda m: torch.nn.functional.cross_entropy(m(images), marks))


@case
def captum__integrated_gradients() -> list[float]:
    import torch
    from captum.attr import IntegratedGradients

    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    given = IntegratedGradients(net).attribute(torch.randn(2, 4), target=1, n_steps=10)
    return [float(x) for x in given.flatten()]


@case
def opacus__gradients_of_samples() -> list[float]:
    import torch
    from opacus.grad_sample import GradSampleModule

    model = GradSampleModule(torch.nn.Linear(8, 3))
    labels = torch.randint(0, 3, (5,))
    torch.nn.functional.cross_entropy(model(torch.randn(5, 8)), labels).backward()
    return [float(p.grad_sample.pow(2).sum()) for p in model.parameters()]


def _declare_operators() -> list[Any]:
    """Return torchvision's operators, declared where its library is for CUDA and torch is not.

    Without them that torchvision cannot be imported under PyTorch.
    """
    import torch

    if "distgrad" in sys.modules or torch.version.cuda or not find_spec("torchvision"):
        return []
    if "+cpu" in version("torchvision"):
        return []
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return [library]


def worker(names: list[str]) -> None:
    """Run cases and print a line of JSON each."""
    import numpy
    import torch

    kept = _declare_operators()  # noqa: F841  they last as long as the library
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in names:
        torch.manual_seed(0)
        random.seed(0)
        numpy.random.seed(0)  # noqa: NPY002  some packages draw from it
        began = time.perf_counter()
        try:
            found: Any = CASES[name]()
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            found = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        seconds = time.perf_counter() - began
        print("RESULT " + json.dumps([name, found, seconds]), flush=True)


def results(command: list[str], names: list[str]) -> dict[str, tuple[Any, float]]:
    """Return what each case gave, and its seconds, in a process of its own."""
    done = subprocess.run(
        [*command, __file__, "--worker", *names], capture_output=True, text=True, check=False
    )
    lines = [line.partition("RESULT ")[2] for line in done.stdout.splitlines()]
    return {name: (found, s) for name, found, s in map(json.loads, filter(None, lines))}


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--worker"]:
        worker(words[1:])
        return
    names = [n for n in CASES if not words or n.partition("__")[0] in words]
    theirs = results([sys.executable], names)
    ours = results([sys.executable, "-m", "distgrad.launch", "--as-torch"], names)
    print(f"{'package':<28} {'what':<24} {'first number':>12} {'differs by':>10} {'time':>6}")
    for name in names:
        package, _, what = name.partition("__")
        (a, before), (b, now) = (r.get(name, ("no result", 0.0)) for r in (theirs, ours))
        if isinstance(a, str) or isinstance(b, str):
            side, text = ("torch", a) if isinstance(a, str) else ("distgrad", b)
            print(f"{package:<28} {what:<24} {side}: {text.splitlines()[0][:90]}")
            continue
        worst = max(abs(x - y) / max(abs(x), 1e-3) for x, y in zip(a, b, strict=True))
        print(f"{package:<28} {what:<24} {a[0]:12.5f} {worst:10.1e} {now / before:5.2f}x")


if __name__ == "__main__":
    main()
