"""What packages take from the module of ``torch.nn.Module`` by its private name."""

from distgrad.nn.state import IncompatibleKeys as _IncompatibleKeys

__all__ = ["_EXTRA_STATE_KEY_SUFFIX", "_IncompatibleKeys"]

_EXTRA_STATE_KEY_SUFFIX = "_extra_state"
