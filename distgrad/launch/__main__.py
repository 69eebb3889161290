"""``python -m distgrad.launch`` and the command ``distgrad``."""

from __future__ import annotations

import sys

from distgrad.launch import run


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(run.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
