"""``python -m torch.distributed.run``: the options of torchrun, given to ``distgrad.launch``."""

from __future__ import annotations

import os
import sys

from distgrad.errors import ConfigError

_USAGE = (
    "torch.distributed.run [--nproc-per-node=N] [--standalone] script.py | -m module [arguments]"
)
_FLAGS = ("standalone", "no_python", "use_env")
_UNUSED = (  # how ranks find each other, which MPI does by itself
    "local_addr", "log_dir", "master_addr", "master_port", "max_restarts", "monitor_interval",
    "node_rank", "rdzv_backend", "rdzv_conf", "rdzv_endpoint", "rdzv_id", "redirects", "role",
    "start_method", "tee",
)  # fmt: skip


def command(argv: list[str]) -> list[str]:
    """Return the command line of ``distgrad.launch`` that does the same.

    Raises:
        ConfigError: for several nodes, which need ``--hosts`` or a batch system; for an unknown
            option.

    Example:
        >>> command(["--standalone", "--nproc-per-node=2", "train.py", "--lr=1"])
        ['--as-torch', '--nproc', '2', 'train.py', '--lr=1']
    """
    words, ranks = list(argv), "1"
    while words and words[0].startswith("-") and words[0] != "-m":
        name, equals, value = words.pop(0).lstrip("-").partition("=")
        name = name.replace("-", "_")
        if name in _FLAGS:
            continue
        if name not in ("nproc_per_node", "nnodes", *_UNUSED):
            raise ConfigError(f"torch.distributed.run: unknown option --{name}; usage: {_USAGE}")
        value = value if equals else words.pop(0)
        if name == "nproc_per_node":
            ranks = "auto" if value in ("auto", "cpu", "gpu") else value
        elif name == "nnodes" and value not in ("1", "1:1"):
            raise ConfigError(
                f"torch.distributed.run: --nnodes={value}: start one program on all nodes with "
                "python -m distgrad.launch --as-torch --nproc N --hosts HOST:RANKS,…"
            )
    if not words:
        raise ConfigError(f"torch.distributed.run: needs a script; usage: {_USAGE}")
    return ["--as-torch", "--nproc", ranks, *words]


def main(argv: list[str] | None = None) -> None:
    """Become ``distgrad.launch``."""
    words = command(sys.argv[1:] if argv is None else argv)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "distgrad.launch", *words])


if __name__ == "__main__":
    main()
