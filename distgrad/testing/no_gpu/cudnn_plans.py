"""Build plans for an H200: ``python -m distgrad.testing.no_gpu.cudnn_plans DESCRIPTIONS``.

The file holds pickled descriptions by name.  Prints one line of JSON each: the name, the plan's
workspace in bytes (null where cuDNN has no plan) and the seconds it took.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from pathlib import Path

from distgrad.testing.no_gpu import H200


def main(path: str) -> None:
    """Build the plans of the descriptions in a file."""
    from distgrad.backend.cuda import cudnn  # it imports CuPy

    library = cudnn.library()
    target = library.create_device_properties(H200.read_text(encoding="utf-8"))
    print(json.dumps({"frontend": library.__version__, "cudnn": cudnn.version()}), flush=True)
    for name, description in pickle.loads(Path(path).read_bytes()).items():
        begin = time.perf_counter()
        graph = cudnn.made(description, device_property=target)
        seconds = time.perf_counter() - begin
        workspace = None if graph is None else graph.get_workspace_size()
        print(json.dumps({"name": name, "workspace": workspace, "s": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
