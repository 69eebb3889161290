"""Models from the network, which this package does not fetch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlparse

from distgrad.errors import ArgumentError
from distgrad.serialization import load as load_file

HASH_REGEX = re.compile(r"-([a-f0-9]*)\.")  # the digest in the name of a file
_chosen: list[str] = []


def tqdm(iterable: Any = None, *args: Any, **options: Any) -> Any:
    """Return tqdm's bar of progress; without tqdm the iterable itself."""
    try:
        import tqdm as bars  # optional, and few programs draw bars
    except ImportError:
        return iterable
    return bars.tqdm(iterable, *args, **options)


def _get_torch_home() -> str:
    """Return the folder of what PyTorch downloads."""
    return str(Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser())


def get_dir() -> str:
    """Return the folder of downloaded models."""
    return _chosen[-1] if _chosen else os.path.join(_get_torch_home(), "hub")


def set_dir(d: str | os.PathLike[str]) -> None:
    """Choose the folder of downloaded models."""
    _chosen[:] = [os.fspath(d)]


def load_state_dict_from_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
    check_hash: bool = False,
    file_name: str | None = None,
    weights_only: bool = False,
) -> Any:
    """Return the state dict of a file that was downloaded before.

    Raises:
        ArgumentError: it is not in the folder; nothing is fetched from the network.
    """
    folder = Path(model_dir) if model_dir else Path(get_dir()) / "checkpoints"
    path = folder / (file_name or url.rpartition("/")[2])
    if not path.is_file():
        raise ArgumentError(
            f"load_state_dict_from_url({url!r}): distgrad fetches nothing from the network; "
            f"download the file to {path}"
        )
    return load_file(path, map_location=map_location)


def download_url_to_file(
    url: str, dst: str, hash_prefix: str | None = None, progress: bool = True
) -> NoReturn:
    """Raise: nothing is fetched from the network.

    Raises:
        ArgumentError: always.
    """
    host = urlparse(url).netloc
    raise ArgumentError(
        f"download_url_to_file({url!r}): distgrad fetches nothing from the network ({host}); "
        f"download the file to {dst}"
    )


def load(repo_or_dir: str, model: str, *args: Any, **kwargs: Any) -> NoReturn:
    """Raise: code is not fetched from the network.

    Raises:
        ArgumentError: always.
    """
    raise ArgumentError(
        f"torch.hub.load({repo_or_dir!r}, {model!r}): distgrad runs no code from the network; "
        "clone the repository and import its model"
    )
