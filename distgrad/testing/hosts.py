"""Hosts on one Linux machine: network namespaces behind a switch of limited rate and with latency.

Needs root, ``ip`` and ``tc``; for latency also a C compiler, because few kernels have netem:
``switch.c`` beside this file is a switch that holds every packet back.  The hosts share this
machine's files and processes; only the network is theirs.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).parent
ROOT = HERE.parent.parent  # where the package lies
NET = "10.78.0."
LAUNCHER = 254  # where mpirun runs
MTU = 60000  # the kernel pays for packets on the ranks' own cores, where network cards cut them
_ENTER = """#!/bin/sh
# What ssh is on real hosts: enter HOST COMMAND...; a host without its network cannot be entered.
while [ "${{1#-}}" != "$1" ]; do [ "$1" = -o ] && shift; shift; done
host={mark}h${{1##*.}}; shift
ip -n "$host" link show eth0 2>/dev/null | grep -q "state UP" || {{
    echo "ssh: connect to host port 22: No route to host" >&2; exit 255; }}
exec ip netns exec "$host" unshare --uts sh -c "hostname $host; $*"
"""
_COUNT = itertools.count()


def sh(command: str) -> None:
    """Run a command that must succeed."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command}: {done.stderr.strip() or done.returncode}")


class Hosts:
    """``count`` hosts, until the block ends.

    Args:
        count: of hosts.
        mbit: each may send and receive a second; 0 is no limit.
        delay_us: of a packet from one to another; 0 takes the kernel's bridge instead of switch.c.
    """

    def __init__(self, count: int, mbit: float = 0.0, delay_us: float = 0.0) -> None:
        self.count, self.mbit, self.delay_us = count, mbit, delay_us
        self.mark = f"dg{os.getpid()}x{next(_COUNT)}"
        self.switch: subprocess.Popen[str] | None = None
        self.folder = tempfile.TemporaryDirectory(prefix="distgrad-hosts-")
        self.numbers = [*range(1, count + 1), LAUNCHER]
        self.ssh = f"{self.folder.name}/enter"  # a program that does what ssh does
        self.addresses = [f"{NET}{number}" for number in self.numbers[:-1]]
        self.outside = ["ip", "netns", "exec", f"{self.mark}h{LAUNCHER}"]  # words to run mpirun by
        self.environ = {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "UCX_TLS": "tcp,self",
            "UCX_NET_DEVICES": "eth0", "FI_PROVIDER": "tcp", "HYDRA_IFACE": "eth0",
            "OMPI_MCA_btl_tcp_if_include": "eth0", "PRTE_MCA_prte_if_include": "eth0",
        }  # fmt: skip

    def __enter__(self) -> Hosts:
        self._remove()
        sh(f"ip netns add {self.mark}s")
        if self.delay_us:
            self._start_switch()
        else:
            sh(f"ip -n {self.mark}s link add br0 type bridge")
            sh(f"ip -n {self.mark}s link set br0 up")
        for port, number in enumerate(self.numbers, 1):
            self._add(port, number)
        Path(self.ssh).write_text(_ENTER.format(mark=self.mark))
        Path(self.ssh).chmod(0o755)
        return self

    def _start_switch(self) -> None:
        program = Path(self.folder.name, "switch")
        sh(f"cc -O2 -o {program} {HERE / 'switch.c'}")
        words = [str(program), str(len(self.numbers)), str(self.delay_us), str(self.mbit)]
        self.switch = subprocess.Popen(
            ["ip", "netns", "exec", f"{self.mark}s", "chrt", "-f", "20", *words],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.switch.stdout is not None
        self.switch.stdout.readline()

    def _add(self, port: int, number: int) -> None:
        inside, host = f"{self.mark}s", f"{self.mark}h{number}"
        sh(f"ip netns add {host}")
        if self.delay_us:
            sh(f"ip -n {inside} link set port{port} netns {host} name eth0")
        else:
            sh(f"ip -n {inside} link add p{port} type veth peer name eth0 netns {host}")
            sh(f"ip -n {inside} link set p{port} mtu {MTU} master br0 up")
        sh(f"ip -n {host} addr add {NET}{number}/24 dev eth0")
        sh(f"ip -n {host} link set eth0 mtu {MTU} up")
        sh(f"ip -n {host} link set lo up")
        if self.mbit and not self.delay_us and number != LAUNCHER:
            limit = f"root tbf rate {self.mbit}mbit burst 64kb latency 50ms"
            sh(f"ip netns exec {host} tc qdisc replace dev eth0 {limit}")
            sh(f"ip netns exec {inside} tc qdisc replace dev p{port} {limit}")

    def run(self, ranks: int, words: list[str], timeout_s: float = 300.0) -> str:
        """Run ``ranks`` ranks, one on each host, and return what they print."""
        mpirun = Path(sys.executable).with_name("mpirun")
        command = [
            *self.outside, str(mpirun), "-n", str(ranks), "-launcher", "ssh", "-launcher-exec",
            self.ssh, "-hosts", ",".join(self.addresses[:ranks]), *words,
        ]  # fmt: skip
        environ = os.environ | self.environ
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.switch is not None:
            self.switch.terminate()
            self.switch.wait()
        self._remove()
        self.folder.cleanup()

    def _remove(self) -> None:
        names = subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout.split()
        for name in names:
            if name.startswith((f"{self.mark}h", f"{self.mark}s")):
                subprocess.run(["ip", "netns", "del", name])


def possible() -> bool:
    """Return whether this machine lets this user make namespaces."""
    probe = f"dgprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "del", probe])
    return made.returncode == 0


if (
    __name__ == "__main__"
):  # a look at what a network does: python -m distgrad.testing.hosts 100 500
    rate, delay = (float(word) for word in (*sys.argv[1:], "0", "0")[:2])
    with Hosts(2, rate, delay) as hosts:
        began = time.perf_counter()
        print(hosts.run(2, [sys.executable, "-c", "from mpi4py import MPI; print(MPI.COMM_WORLD)"]))
        print(f"{time.perf_counter() - began:.1f} s")
