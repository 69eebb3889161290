"""What the package expects of CuPy, NVRTC and NVIDIA's other libraries, asked of the real ones.

No GPU is needed.  In processes of their own, for in others of these tests CuPy has a stand-in.
"""

import json
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu_libraries


def run(code, *arguments):
    """Return what a program prints; skip where there is no CuPy."""
    begin = [sys.executable, "-W", "ignore", "-c"]
    if subprocess.run([*begin, "import cupy"], capture_output=True).returncode:
        pytest.skip("CuPy is not installed")
    done = subprocess.run([*begin, code, *arguments], capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def test_every_name_that_is_used_is_there():
    found = run("import sys; from distgrad.testing import library_names as n; sys.exit(n.main())")
    assert int(found.split()[0]) > 100 and "cupy.cuda.alloc_pinned_memory" not in found


def test_a_name_that_is_not_there_is_found(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(
        "import cupy\nfrom cupy.cuda import runtime\nr = runtime\nxp = cupy_module('x')\n"
        "r.eventPray(1)\ncupy.cuda.Device(0).use()\ncupy.cuda.Dvice(0)\nxp.cuda.strem\n"
    )
    code = """if True:
        import sys; from pathlib import Path; from distgrad.testing.library_names import Names
        names = Names(Path(sys.argv[1])); names.visit(names.tree)
        print(sorted({line for line, name, there in names.found if not there}))
    """
    assert json.loads(run(code, str(file))) == [5, 7, 8]


PTX = """if True:
    import json, sys
    from distgrad.testing import compile_kernels as c
    found = {}
    for kind in ("float", "bf16"):
        for file, types in c.programs(kind):
            for name, text in c.instructions(file, types).items():
                found[f"{name} {kind}"] = text
    print(json.dumps(found))
"""
# Kernels that write arrays, so that it counts how.
RULES = ["sgd", "adam", "adamax", "adagrad", "adadelta", "rmsprop", "radam"]
WRITERS = [
    *RULES, "scale_all", "unscale_all", "relu", "d_gelu", "dropout", "layer_norm", "d_layer_norm",
    "rms_norm", "softmax", "d_cross_entropy", "scale_channels", "d_scale_channels", "embedding",
]  # fmt: skip


@pytest.fixture(scope="module")
def ptx():
    """Return all kernels for float32 and bfloat16 as PTX, by name and type."""
    return json.loads(run(PTX))


@pytest.mark.parametrize("kind", ["float", "bf16"])
def test_kernels_read_and_write_16_bytes_at_a_time(ptx, kind):
    for name in WRITERS:
        wide = re.findall(r"\b(ld|st)[.\w]*\.v4\.", ptx[f"{name} {kind}"])
        assert {"ld", "st"} <= set(wide), (name, wide)


def test_arrays_of_a_thread_stay_in_registers_and_tables_where_they_lie(ptx):
    local = {name for name, text in ptx.items() if ".local" in text}
    assert local <= {"prepare float", "prepare bf16"}  # which runs in one thread


def test_rules_keep_numbers_next_to_0_though_cupy_asks_to_flush_them(ptx):
    for name in [*RULES, "reduce_windows"]:
        text = ptx[f"{name} float"]
        assert not re.findall(r"\b(?:add|sub|mul|div|fma|sqrt|neg|abs|max)[.\w]*\.ftz", text), name
        assert re.search(r"\badd\.rn\.f32", text) or name == "sgd", name
