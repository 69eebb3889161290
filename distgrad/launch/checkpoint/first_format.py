"""Checkpoints of the first format, which rank 0 wrote alone, read as those of today are.

``state.json`` has the sums of ``model.safetensors`` and ``optim.safetensors``. The state of the
optimizer is there by the numbers of parameters.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from distgrad.distributed.checkpoint.folder import Folder, sum_of
from distgrad.distributed.checkpoint.strict import list_in, parsed, table_in
from distgrad.distributed.work import HostArray
from distgrad.errors import CheckpointError
from distgrad.serialization.safetensors import load_file

FORMAT = 1
LEAD = "state.json"
_FILES = ("model.safetensors", "optim.safetensors")
_MOST_BYTES = 64 << 20


class FirstFormat:
    """A checkpoint of the first format, open for reading.

    Args:
        path: its directory.

    Raises:
        CheckpointError: it is torn, or of a format that is not known here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = Folder(path, LEAD)
        try:
            text = self._folder.lead(_MOST_BYTES)
            self.digest = hashlib.sha256(text).hexdigest()
            self._state = table_in(parsed(text, LEAD), LEAD)
            if self._state.get("format") != FORMAT:
                raise CheckpointError(
                    f"has format {str(self._state.get('format'))[:80]}, this version reads 1 and 2"
                )
            sums = table_in(self._state.get("sha256"), "sha256")
            if sorted(sums) != sorted(_FILES):
                raise CheckpointError(f"{LEAD} speaks of other files than {' and '.join(_FILES)}")
            self._sums: dict[str, Any] = sums
        except BaseException:
            self.close()
            raise
        self._tensors: dict[str, HostArray] | None = None

    @property
    def files(self) -> list[str]:
        """The names of the files."""
        return list(_FILES)

    @property
    def world(self) -> int:
        """How many ranks wrote it."""
        return 1

    def verify(self, names: list[str] | None = None) -> None:
        """Raise unless the files have their sums."""
        for name in _FILES if names is None else names:
            handle, _ = self._folder.open(name)
            with open(handle, "rb", buffering=0):
                if sum_of(handle).sha256 != self._sums[name]:
                    raise CheckpointError(f"{name} is damaged, its sha256 is not the one in {LEAD}")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors."""
        return {key: array.shape for key, array in self._arrays().items()}

    def read(self, key: str, start: int = 0, stop: int | None = None) -> HostArray:
        """Return elements of a flat tensor."""
        return self._arrays()[key].reshape(-1)[start:stop]

    def object(self, key: str) -> Any:
        """Return a value that is no tensor; parameters of groups are numbers here."""
        if key == "optim/param_groups":
            groups = list_in(_optimizer(self._state).get("param_groups"), key)
            return [
                {k: tuple(v) if k == "betas" else v for k, v in table_in(group, key).items()}
                for group in groups
            ]
        value = self._state.get(key.removeprefix("job/"))
        if value is None and key != "job/metric":
            raise CheckpointError(f"{LEAD} says nothing of {key}")
        return value

    def _arrays(self) -> dict[str, HostArray]:
        """Return all tensors by the keys of today."""
        if self._tensors is None:
            found: dict[str, HostArray] = {}
            for lead, name in zip(("model/", "optim/state/"), _FILES, strict=True):
                self.verify([name])
                for key, tensor in load_file(self.path / name).items():
                    number, _, slot = key.partition(".")
                    found[f"{lead}{number}/{slot}" if lead[0] == "o" else lead + key] = tensor.array
            numbers = table_in(_optimizer(self._state).get("numbers"), "numbers")
            for key, value in numbers.items():
                number, _, slot = key.partition(".")
                found[f"optim/state/{number}/{slot}"] = np.array(value, np.float32)
            found["rng/00000"] = np.array(self._state.get("rng"), np.uint8)
            self._tensors = found
        return self._tensors

    def close(self) -> None:
        """Close the directory."""
        self._folder.close()


def _optimizer(state: dict[str, Any]) -> dict[str, Any]:
    return table_in(state.get("optimizer"), "optimizer")
