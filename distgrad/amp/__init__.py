"""Mixed precision: autocast multiplies in 16 bits, GradScaler keeps gradients in range."""

from distgrad.amp import state
from distgrad.amp.autocast import autocast, custom_bwd, custom_fwd, is_autocast_available
from distgrad.amp.scaler import GradScaler

__all__ = ["GradScaler", "autocast", "custom_bwd", "custom_fwd", "is_autocast_available", "state"]
