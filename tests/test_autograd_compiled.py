"""The compiled operations are kept between runs, and anything odd about them is ignored."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import builtins
calls, real = [], builtins.compile
builtins.compile = lambda *a, **k: calls.append(a[1]) or real(*a, **k)
import distgrad as dg
print(sum(str(c).startswith('<distgrad operation') for c in calls), (dg.ones(2) * 3).tolist())
"""


def run(prefix, **more):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(prefix)} | more
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env, check=True
    )
    compiled, result = done.stdout.split(maxsplit=1)
    assert result.strip() == "[3.0, 3.0]"
    return int(compiled)


def test_the_second_import_compiles_nothing_and_a_damaged_file_is_made_anew(tmp_path):
    every = run(tmp_path)
    assert every > 200
    assert run(tmp_path) == 0
    (kept,) = tmp_path.rglob("operations.marshal")
    for damage in (b"", b"nonsense", kept.read_bytes()[:-9]):
        kept.write_bytes(damage)
        assert run(tmp_path) == every
        assert run(tmp_path) == 0


def test_nothing_is_written_where_python_writes_no_bytecode(tmp_path):
    assert run(tmp_path, PYTHONDONTWRITEBYTECODE="1") > 200
    assert not list(tmp_path.rglob("*"))
