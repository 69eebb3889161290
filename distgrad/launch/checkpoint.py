"""Checkpoints of a run: directories that are complete or not there at all.

``step_00000200/`` holds ``model.safetensors``, ``optim.safetensors`` and ``state.json``, which has
the sha256 of the others.  It is written under a temporary name, flushed to the disk and renamed, so
a killed job or a full disk leaves the checkpoint before it as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distgrad.errors import CheckpointError
from distgrad.launch.rundir import write_json
from distgrad.serialization import load_file, save_file
from distgrad.tensor import Tensor

FORMAT = 1


def save(
    folder: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
    keep: int = 3,
) -> Path:
    """Write the checkpoint of ``step`` into ``folder`` and return its directory.

    Args:
        folder: the directory of checkpoints; ``latest`` there will point to the new one.
        step: optimizer steps done.
        model: the state dict of the model.
        optimizer: the state dict of the optimizer.
        state: anything JSON can hold.
        keep: how many checkpoints stay, the newest.

    Raises:
        CheckpointError: the disk refuses; what was there before is untouched.
    """
    target = folder / f"step_{step:08d}"
    part = folder / f"{target.name}.tmp"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        tensors, rest = _flat_optimizer(optimizer)
        save_file(dict(model), part / "model.safetensors")
        save_file(tensors, part / "optim.safetensors")
        digests = {p.name: sha256(p) for p in sorted(part.glob("*.safetensors"))}
        head = {"format": FORMAT, "step": step, "sha256": digests, "optimizer": rest}
        write_json(part / "state.json", head | dict(state))
        _sync(part)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part, target)
        _sync(folder)
        _point_latest(folder, target.name)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(part, ignore_errors=True)
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"save(step {step}): {folder} cannot take the checkpoint ({why}); free space or "
            "choose another --run-dir; earlier checkpoints are untouched"
        ) from error
    _drop_old(folder, keep)
    return target


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Return model state, optimizer state and the rest of the checkpoint ``path``, checked.

    Raises:
        CheckpointError: it is missing, torn, or its files do not have their sums.
    """
    state = _read_state(path)
    for name, digest in state["sha256"].items():
        if not (path / name).is_file():
            raise CheckpointError(f"load({path}): {name} is missing; {_another(path)}")
        if sha256(path / name) != digest:
            raise CheckpointError(
                f"load({path}): {name} is damaged, its sha256 is not the one in state.json; "
                f"{_another(path)}"
            )
    tensors = load_file(path / "optim.safetensors")
    return load_file(path / "model.safetensors"), _nested_optimizer(tensors, state), state


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"load({path}): state.json cannot be read ({error.strerror}); {_another(path)}"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"load({path}): state.json is torn ({error}); {_another(path)}"
        ) from error
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"load({path}): has format {state.get('format')!r}, this version reads {FORMAT}"
        )
    return state


def _another(path: Path) -> str:
    """Return what to do instead of loading ``path``."""
    others = sorted(p for p in path.parent.glob("step_*") if p != path and p.suffix != ".tmp")
    if others:
        return f"take --resume {others[-1]}, or --resume never to begin anew"
    return "begin anew with --resume never and another --run-dir"


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(model: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes of all tensors."""
    total = hashlib.sha256()
    for name in sorted(model):
        array = model[name].detach().cpu().numpy()
        total.update(f"{name} {array.dtype} {array.shape};".encode())
        total.update(array.tobytes())
    return total.hexdigest()


# ---------------------------------------------------------------------- the optimizer's state
def _flat_optimizer(optimizer: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for place, entries in optimizer["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{place}.{name}"] = value
            else:
                numbers[f"{place}.{name}"] = value
    return tensors, {"numbers": numbers, "param_groups": optimizer["param_groups"]}


def _nested_optimizer(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> dict[str, Any]:
    rest = state["optimizer"]
    nested: dict[int, dict[str, Any]] = {}
    for key, value in {**rest["numbers"], **tensors}.items():
        place, _, name = key.partition(".")
        nested.setdefault(int(place), {})[name] = value
    groups = [
        {k: tuple(v) if k == "betas" else v for k, v in group.items()}
        for group in rest["param_groups"]
    ]
    return {"state": nested, "param_groups": groups}


# ---------------------------------------------------------------------- the disk
def _sync(folder: Path) -> None:
    """Flush the entries of a directory, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point_latest(folder: Path, name: str) -> None:
    part = folder / "latest.tmp"
    part.unlink(missing_ok=True)
    part.symlink_to(name)
    os.replace(part, folder / "latest")


def _drop_old(folder: Path, keep: int) -> None:
    done = sorted(p for p in folder.glob("step_*") if p.name[5:].isdigit())
    for path in done[: max(0, len(done) - keep)]:
        shutil.rmtree(path, ignore_errors=True)
