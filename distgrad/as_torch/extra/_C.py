"""PyTorch's compiled part: the few names that programs ask of it."""

from __future__ import annotations


def _log_api_usage_once(event: str) -> None:
    """Do nothing: nobody counts."""


def _get_tracing_state() -> None:
    """Return None: nothing is traced."""
    return


class DispatchKey:
    """Names of parts of PyTorch's dispatcher, which is not here."""

    AutocastCPU = AutocastCUDA = AutocastXPU = Autograd = ""


class DispatchKeySet:
    """A set of such names."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __or__(self, other: DispatchKeySet) -> DispatchKeySet:
        return self


class DisableTorchFunctionSubclass:
    """A ``with`` block that changes nothing: no class answers for operations here."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


DisableTorchFunction = DisableTorchFunctionSubclass
