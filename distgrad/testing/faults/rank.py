"""The launcher with a fault in it: ``python -m distgrad.testing.faults.rank FAULT STEP FOLDER …``.

What follows are the arguments of ``distgrad.launch``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from distgrad.launch.run import main
from distgrad.testing.faults.plan import Fault
from distgrad.testing.faults.strike import Striker

if __name__ == "__main__":
    fault, step, folder, *rest = sys.argv[1:]
    Striker(Fault.loads(fault), int(step), Path(folder)).arm()
    sys.exit(main(rest))
