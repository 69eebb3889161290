"""What only PyTorch's programs ask of ``torch.distributed``."""

from distgrad.as_torch.extra.distributed.constants import default_pg_timeout

__all__ = ["default_pg_timeout"]
