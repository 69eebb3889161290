"""Pauses the garbage collector from the import of this module on, until `resume`.

``import distgrad`` makes some hundred thousand objects, and no garbage: looking for it 170 times
takes a third of the import.
"""

import gc

_collected = gc.isenabled()
gc.disable()


def resume() -> None:
    """Let the collector go on, if it was on before."""
    if _collected:
        gc.enable()
