"""``import torch`` means distgrad, and says what it does not have."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from distgrad.as_torch.extra.distributed.run import command
from distgrad.as_torch.extra.torch_version import TorchVersion
from distgrad.as_torch.places import sources_of

EVERY_MODULE = """\
torch torch.nn torch.nn.functional torch.nn.init torch.nn.modules.conv torch.nn.modules.utils
torch.nn.modules.module torch.nn.utils torch.nn.utils.rnn torch.nn.parallel
torch.nn.parallel.distributed torch.nn.parameter torch.optim torch.optim.adamw
torch.optim.lr_scheduler torch.optim.optimizer torch.optim.swa_utils torch.utils torch.utils.data
torch.utils.data.dataloader torch.utils.data.dataset torch.utils.data.distributed
torch.utils.data.sampler torch.utils.checkpoint torch.utils.hooks torch.utils._pytree
torch.utils.benchmark torch.utils.dlpack torch.utils.model_zoo torch.autograd torch.cuda.graphs
torch.autograd.function torch.autograd.functional torch.autograd.profiler torch.autograd.variable
torch.amp torch.amp.autocast_mode torch.amp.grad_scaler torch.cuda torch.cuda.amp torch.cuda.nvtx
torch.backends torch.backends.cudnn torch.backends.mps torch.backends.cuda torch.mps torch.xpu
torch.cpu torch.accelerator torch.distributed torch.distributed.nn torch.distributed.optim
torch.distributed.distributed_c10d torch.distributed.elastic.multiprocessing.errors
torch.distributions torch.distributions.normal torch.distributions.kl
torch.distributions.transforms torch.multiprocessing torch.profiler torch.hub torch.jit torch.fx
torch.onnx torch.export torch.func torch.linalg torch.fft torch.special torch.testing torch.random
torch.types torch.version torch.overrides torch.compiler torch._dynamo torch.sparse torch.futures
torch.masked torch.signal.windows torch.return_types torch.serialization torch.storage
"""


def python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_usual_module_is_there() -> None:
    python(f"""
        import distgrad, importlib
        distgrad.as_torch()
        distgrad.as_torch()
        for name in {EVERY_MODULE.split()!r}:
            module = importlib.import_module(name)
            assert module.__name__ == name
        import torch
        assert torch.nn.Linear is distgrad.nn.Linear
        assert torch.utils.data.DataLoader is distgrad.utils.data.DataLoader
        from torch.nn import functional as F
        assert F is torch.nn.functional
    """)


def test_submodules_need_no_import_of_their_own() -> None:
    out = python("""
        import distgrad
        distgrad.as_torch()
        import torch
        print(torch.nn.functional.relu(torch.ones(1)), torch.float32, torch.backends.cudnn.enabled)
        torch.backends.cudnn.benchmark = True
        print(torch.backends.cudnn.benchmark, torch.ones(1).type(), torch.Size([2]))
    """)
    words = "tensor([1.]) torch.float32 True True torch.FloatTensor torch.Size([2])"
    assert out.split() == words.split()


def test_what_is_missing_is_named() -> None:
    out = python("""
        import distgrad
        distgrad.as_torch()
        import torch, torch.onnx
        def refused(call):
            try:
                call()
            except (AttributeError, ImportError) as error:
                print(type(error).__name__, error)
        refused(lambda: torch.nn.Lineaer)
        refused(lambda: torch.onnx.dynamo)
        refused(lambda: __import__("torch.nonsense"))
        refused(lambda: torch.nn.nonsense)
        refused(lambda: exec("from torch.nested import nested_tensor"))
        print(hasattr(torch, "compile"), hasattr(torch, "nonsense"))
    """)
    lines = out.splitlines()
    assert lines[0] == (
        "AttributeError torch.nn.Lineaer: distgrad has no 'Lineaer' in torch.nn; "
        "did you mean Linear?"
    )
    assert lines[1] == "AttributeError torch.onnx.dynamo: distgrad has no 'dynamo' in torch.onnx"
    assert lines[2] == "ModuleNotFoundError torch.nonsense: distgrad has no such module"
    assert lines[3].startswith("AttributeError torch.nn.nonsense: distgrad has no")
    assert lines[4].startswith("ImportError cannot import name 'nested_tensor' from 'torch.nested'")
    assert lines[5] == "True False"


@pytest.mark.torch
def test_pytorch_itself_must_not_be_there() -> None:
    pytest.importorskip("torch")
    out = python("""
        import torch, distgrad
        try:
            distgrad.as_torch()
        except ValueError as error:
            print(error)
    """)
    assert out.startswith("as_torch(): PyTorch itself is imported already (from ")


def test_compile_returns_the_model_and_says_so_once() -> None:
    out = python("""
        import distgrad, warnings
        distgrad.as_torch()
        import torch
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model = torch.nn.Linear(1, 1)
            assert torch.compile(model) is model and torch.compile(model) is model
            @torch.compile(mode="reduce-overhead")
            def f(x): return x
            assert f(3) == 3
            assert torch.jit.script(model) is model
        print([str(t.message) for t in told])
        try:
            torch.jit.save(model, "x")
        except ValueError as error:
            print(error)
    """)
    assert "'torch.compile returns the model as it is: distgrad has no compiler', " in out
    assert out.count("torch.compile") == 1
    assert "save and load state dicts" in out


def test_tensorboard_needs_tensorboardx() -> None:
    out = python("""
        import distgrad, sys
        distgrad.as_torch()
        sys.modules["tensorboardX"] = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            print(error)
    """)
    assert "pip install tensorboardX" in out


def test_versions_compare_by_their_numbers() -> None:
    version = TorchVersion("2.13.0+distgrad0.1")
    assert version >= "2.9" > "2.13"
    assert version > "1.8.1" and version < (3,) and version >= (2, 13) and version != "2.12.0"
    assert version.split(".")[0] == "2" and version.startswith("2.13")
    assert version == "2.13.0+distgrad0.1" and version == "2.13"


def test_only_modules_of_pytorch_are_answered_for() -> None:
    assert sources_of("launch") == sources_of("backend") == sources_of("nn.modules.nonsense") == ()
    assert sources_of("nn.modules.conv") == ("distgrad.nn.modules.conv",)
    assert sources_of("optim.adamw") == ("distgrad.optim",)


def test_torchruns_options_are_the_launchers() -> None:
    words = command(["--standalone", "--nnodes", "1", "--nproc_per_node", "4", "-m", "a.b", "--x"])
    assert words == ["--as-torch", "--nproc", "4", "-m", "a.b", "--x"]
    assert command(["--nproc-per-node=gpu", "a.py"]) == ["--as-torch", "--nproc", "auto", "a.py"]
    for wrong, text in (
        (["--nnodes=2", "a.py"], "--hosts HOST:RANKS"),
        (["--nonsense=2", "a.py"], "unknown option --nonsense"),
        (["--standalone"], "needs a script"),
    ):
        with pytest.raises(ValueError, match=text):
            command(wrong)


def test_safetensors_reads_and_writes_with_its_own_module(tmp_path: Path) -> None:
    out = python(f"""
        import distgrad
        distgrad.as_torch()
        import torch
        from safetensors.torch import load_file, save_file
        path = {str(tmp_path / "file.safetensors")!r}
        save_file({{"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.bfloat16)}}, path)
        found = load_file(path)
        found["a"] += 1
        print(found)
    """)
    assert out == "{'a': tensor([1., 2., 3.]), 'b': tensor([1., 1.], dtype=torch.bfloat16)}\n"


def test_other_kinds_of_devices_are_refused_when_used() -> None:
    out = python("""
        import distgrad
        distgrad.as_torch()
        import torch
        for call in (lambda: torch.ones(1).to("mps"), lambda: torch.zeros(1, device="meta")):
            try:
                call()
            except RuntimeError as error:
                print(error)
    """)
    assert out.count("there are no arrays on this kind of device here") == 2


def test_extensions_compiled_for_pytorch_are_refused() -> None:
    out = python("""
        import distgrad
        distgrad.as_torch()
        import torch
        try:
            torch.ops.load_library("libfoo.so")
        except OSError as error:
            print(error)
        @torch.library.register_fake("a::b")
        def f(x): return x
        assert f(3) == 3
    """)
    assert "distgrad loads no such library" in out


def test_packages_find_what_they_ask_of_pytorchs_inside() -> None:
    """Names by which torchvision, timm, transformers, lightning and others look into PyTorch."""
    out = python("""
        import distgrad
        distgrad.as_torch()
        import torch
        from torch.fx.experimental.symbolic_shapes import guard_or_false
        from torch.fx.node import Target
        from torch.hub import HASH_REGEX, _get_torch_home
        from torch.nn.modules.module import _IncompatibleKeys
        from torch.utils._pytree import SUPPORTED_NODES, LeafSpec, tree_flatten, tree_map
        from torch.utils.checkpoint import get_device_states
        from torch.utils.data.dataloader import _BaseDataLoaderIter
        from torch.distributed.tensor import DTensor
        assert torch.torch is torch and not isinstance(torch.ones(1), DTensor)
        assert torch.finfo(torch.float8_e5m2).max == 57344.0
        assert torch.finfo(torch.float32).bits == 32
        assert torch.sparse_coo != torch.ones(1).layout == torch.strided
        graph = torch.sparse.FloatTensor(torch.tensor([[0], [1]]), torch.ones(1), (2, 2))
        assert graph.layout == torch.sparse_coo
        assert torch.spmm(graph, torch.eye(2)).tolist() == [[0, 1], [0, 0]]
        assert torch.fx.wrap("len") == "len" and guard_or_false(1)
        assert torch.ops.aten.add.Tensor(torch.ones(1), 1).item() == 2
        assert torch._C._nn._parse_to("cpu", torch.float64)[1] is torch.float64
        assert tree_map(lambda x: -x, {"a": [1, (2, 3)]}) == {"a": [-1, (-2, -3)]}
        assert tree_flatten(5)[1] == LeafSpec() and list in SUPPORTED_NODES
    """)
    assert out == ""


def test_operations_of_ones_own_have_gradients() -> None:
    out = python("""
        import distgrad
        distgrad.as_torch()
        import torch
        @torch.library.custom_op("mine::cube", mutates_args=())
        def cube(x: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
            return factor * x**3
        def keep(ctx, inputs, output):
            ctx.x, ctx.factor = inputs
        def backward(ctx, grad):
            return grad * 3 * ctx.factor * ctx.x**2, None
        torch.library.register_autograd("mine::cube", backward, setup_context=keep)
        x = torch.tensor([2.0], requires_grad=True)
        torch.ops.mine.cube(x, factor=2.0).sum().backward()
        print(x.grad.item())
    """)
    assert out == "24.0\n"


def test_calls_are_counted_by_the_profiler() -> None:
    out = python("""
        import distgrad
        distgrad.as_torch()
        import torch
        from torch.profiler import ProfilerActivity, profile, schedule
        saved = []
        plan = schedule(wait=1, warmup=1, active=2, repeat=1)
        with profile(activities=[ProfilerActivity.CPU], schedule=plan,
                     on_trace_ready=lambda p: saved.append(p.step_num)) as p:
            for _ in range(6):
                torch.ones(2).exp()
                p.step()
        print(saved, "function calls" in p.key_averages().table(sort_by="cpu_time_total"))
    """)
    assert out == "[4] True\n"


def test_tensorboardx_reads_tensors():
    pytest.importorskip("tensorboardX")
    program = (
        "import torch, tempfile; from torch.utils.tensorboard import SummaryWriter\n"
        "w = SummaryWriter(tempfile.mkdtemp()); x = torch.ones(3, requires_grad=True)\n"
        "w.add_scalar('a', x.norm(), 1); w.add_histogram('b', x, 1); w.close()\n"
    )
    code = f"import distgrad; distgrad.as_torch()\n{program}"
    subprocess.run([sys.executable, "-c", code], check=True)
