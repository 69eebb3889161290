"""The older name of ``torch.hub.load_state_dict_from_url``."""

from distgrad.as_torch.extra.hub import load_state_dict_from_url as load_url
from distgrad.as_torch.extra.hub import tqdm

__all__ = ["load_url", "tqdm"]
