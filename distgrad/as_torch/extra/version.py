"""What this PyTorch is made of."""

from __future__ import annotations

from importlib.metadata import distributions

from distgrad.as_torch.extra.torch_version import __version__ as _version

__version__ = str(_version)
debug = False
git_version = "distgrad"
hip = None
xpu = None


def _cuda() -> str | None:
    """Return the CUDA version that the installed CuPy is built for; None without CuPy."""
    for found in distributions():
        name = (found.metadata["Name"] or "").lower()
        if name.startswith("cupy-cuda"):
            return name.removeprefix("cupy-cuda").rstrip("x") + ".0"
    return None


cuda = _cuda()
