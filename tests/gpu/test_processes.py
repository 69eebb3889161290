"""Ranks in processes of their own on one GPU, which read each other's memory by CUDA's handles."""

import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from distgrad.backend.device import cupy_module
from distgrad.distributed import ipc

pytestmark = pytest.mark.gpu

READER = """if True:
    import pickle, sys
    from distgrad.backend.device import cupy_module
    from distgrad.distributed import ipc

    cupy = cupy_module("this test")
    offer = pickle.loads(sys.stdin.buffer.read())
    window, stream = ipc.Opened(offer, 0), cupy.cuda.Stream(non_blocking=True)
    with stream:
        window.wait(0, stream)
        print(int(window.part(0, 64, 1000, "f4").sum()), flush=True)
    window.close()
"""

RANKS = """if True:
    import sys
    import numpy as np
    import distgrad as dg
    from distgrad.testing import device_ranks as d

    group, place = dg.distributed.init_process_group(), dg.device("cuda:0")
    dg.cuda.set_device(place)
    for name, body in d.COLLECTIVES.items():
        there, here = (body(group, p) for p in (place, dg.device("cpu")))
        for a, b in zip(there, here, strict=True):
            got, want = a.cpu().float().numpy(), b.float().numpy()
            np.testing.assert_allclose(got, want, 1e-5, 1e-5, err_msg=name)
    ways = {str(c.gpus and c.gpus.link and c.gpus.link.way) for c in group.siblings.values()}
    print("ways", sorted(ways), flush=True)
"""


def test_a_process_reads_the_memory_of_another_behind_its_event():
    cupy = cupy_module("this test")
    window = ipc.Window(1 << 20)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        whole = ipc.array_at(window.memory[0].ptr, 2000, "f4", window, 0)
        whole[...] = cupy.arange(2000, dtype="f4")
        window.full[0].record(stream)
    given = pickle.dumps(window.offer())
    done = subprocess.run([sys.executable, "-c", READER], input=given, capture_output=True)
    assert not done.returncode, done.stderr.decode()
    assert int(done.stdout) == int(np.arange(16, 1016, dtype="f4").sum())


def test_collectives_of_processes_that_share_a_gpu_give_the_hosts_results():
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("there is no mpirun")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = [mpirun, "-n", "2", sys.executable, "-W", "ignore", "-c", RANKS]
    done = subprocess.run(command, env=os.environ | root, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    assert "CUDA IPC" in done.stdout
