"""``python -m distgrad.launch`` and the command ``distgrad``."""

from __future__ import annotations

import sys

from distgrad.launch import run


def main() -> None:
    """Run the command line and exit with its status."""
    # not sys.exit: a process group takes a status that goes through it for a failure of this rank
    # alone, while all ranks agree on this one
    raise SystemExit(run.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
