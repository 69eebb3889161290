"""Arrays and what belongs to them: types, devices, random numbers, printing, NumPy and CuPy.

Infinities and NaNs are results of operations, as in PyTorch, and no reason for a warning: NumPy's
are silenced where they come from a line of this package.  Users' own NumPy code keeps its warnings.
"""

import warnings

from distgrad.backend.host_memory import keep_freed_memory

warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"distgrad\.")
keep_freed_memory()
