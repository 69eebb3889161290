"""A unit: parameters that are gathered together before a module computes, and dropped after it.

Note [Parts and whole parameters]
    The parameters that a module had become parts: flat tensors with the elements of this rank.
    Optimizers, `parameters()` and users see them. For each there is a whole parameter, another
    leaf, which stands in its place in the module while the unit is gathered. Graphs lead to whole
    parameters, and their gradients go to the owners of the elements, into the ``grad`` of parts.

Note [Saved whole parameters]
    An operation saves the whole parameter itself, not its memory. So the memory goes when the unit
    is dropped, and is there again, somewhere else, when it is gathered for backward. Whoever reads
    a whole parameter at another time has the unit gathered at that moment. A view that an
    operation saved keeps the memory that it was cut from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from distgrad.autograd.engine import call_leaf_hooks
from distgrad.backend.device import CPU, array_namespace, device_of, to_device
from distgrad.distributed.group import ProcessGroup, check_same
from distgrad.distributed.halves import gather_parts
from distgrad.distributed.progress import Progress, start_progress
from distgrad.distributed.reduction import PHASES, Common, Exchange, Reduction
from distgrad.distributed.spread import Spread
from distgrad.distributed.tree import Sum
from distgrad.distributed.work import HostArray, Work
from distgrad.errors import DistributedError, GradError
from distgrad.nn.parameter import Parameter
from distgrad.tensor import Tensor, shared_of, wrap
from distgrad.typing import Array

_FIRST_NUMBER = 2048  # buckets of DistributedDataParallel on the same channel have smaller ones


class Home(NamedTuple):
    """Where a parameter is registered."""

    module: Any
    name: str


class Whole(Parameter):
    """A whole parameter: its array is there while the unit is gathered."""

    __slots__ = ()

    @property
    def array(self) -> Array:
        """The values; gathered now, if they are not there."""
        view = self.__dict__["view"]
        if view is None:
            self.__dict__["unit"].gather_late()
            view = self.__dict__["view"]
        return view

    @property
    def _shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.__dict__["whole_shape"]
        return shape


def _whole(unit: Unit, part: Tensor, shape: tuple[int, ...]) -> Whole:
    whole = object.__new__(Whole)
    whole.__dict__.update(unit=unit, view=None, whole_shape=shape)
    whole._requires = part._requires
    whole._grad = whole._node = whole._shared = None
    return whole


class Unit:
    """Parameters that are gathered together.

    Args:
        modules: those that `fully_shard` was called with; forward goes through them in order.
        name: of the first, for messages.
        params: the parameters, of one dtype on one device.
        names: theirs.
        homes: where each is registered.
        group: the ranks.
        dtype: of the whole parameters, None for their own.
        wire_dtype: of their gradients on the way, None for that of the whole parameters.

    Ranks: all, with the same; everyone gets the values of rank 0.
    """

    def __init__(
        self,
        modules: Sequence[Any],
        name: str,
        params: Sequence[Tensor],
        names: Sequence[str],
        homes: Sequence[Sequence[Home]],
        group: ProcessGroup,
        dtype: Any = None,
        wire_dtype: Any = None,
    ) -> None:
        """Compare the parameters, and keep this rank's part of those of rank 0."""
        self.modules, self.name, self.homes = list(modules), name, homes
        kinds = "; ".join(
            f"{n} {p.array.dtype}{list(p.array.shape)}" for n, p in zip(names, params, strict=True)
        )
        check_same(group, f"parameters of fully_shard({name})", kinds)
        self._connect(Spread(params, names, group))
        self.dtype = params[0].array.dtype if dtype is None else dtype
        self.wire_dtype = self.dtype if wire_dtype is None else wire_dtype
        self.values: Array | None = None  # flat, while the unit is gathered
        self.held = 0  # by how many users that want it gathered all the time
        self.gathers = 0  # since the beginning
        self.wholes = [_whole(self, p, s) for p, s in zip(params, self.spread.shapes, strict=True)]
        self.numbers = {id(w): place for place, w in enumerate(self.wholes)}
        self._job: Work | None = None
        self._host: Any = None  # where the values arrive
        self._versions: list[int] = []
        # `FSDPModule` says when to drop.
        self.drops_after_forward: bool | None = None  # None: unless it is the outermost
        self.drops_after_backward = True
        self.prefetch_forward: list[Unit] = []
        self.prefetch_backward: list[Unit] = []
        self._cut()
        self._prepare()

    def _connect(self, spread: Spread) -> None:
        """Belong to the ranks of ``spread``."""
        spread.enter()
        self.spread, self.channel = spread, spread.group.channel("buckets")
        self.progress = _progress_of(self.channel) if spread.group.size > 1 else None
        self.number = next_number(self.channel)

    def _prepare(self) -> None:
        """Set what the conductor changes."""
        self.ready: set[int] = set()
        self.launched = False
        self.reduction: Work | None = None
        self.total = Sum(np.add)  # of this rank's elements, over shards
        self.collected = False  # the sum over all of them is in ``grad``
        self.region: Any = None
        self.common: Common | None = None
        self.wire: HostArray = np.empty(0)
        self.sent: Any = None  # when the last reduction was filled, and the transfer itself

    def _cut(self) -> None:
        """Take rank 0's values, keep this rank's part, and let go of the rest."""
        spread, array = self.spread, self.spread.params[0].array
        xp = array_namespace(array)
        flat = xp.concatenate([p.array.reshape(-1) for p in spread.params])
        host = to_device(flat, CPU)
        spread.group.broadcast(host)
        self._lay_out(xp.empty(spread.mine.stop - spread.mine.start, array.dtype))
        self.local[...] = to_device(host[spread.mine], device_of(array))

    def _lay_out(self, local: Array) -> None:
        """Let the parts be views of ``local``, this rank's elements, without gradients."""
        self.local, self.grad = local, array_namespace(local).zeros(local.size, local.dtype)
        for place, part in enumerate(self.spread.params):
            where = self.spread.local(place)
            part.array = self.local[where]
            part.grad = None
            part._grad_buffer = wrap(self.grad[where])

    def move(self, spread: Spread, local: Array) -> None:
        """Have another part, as other ranks cut the parameters; what was under way is dropped.

        Args:
            spread: the same parameters over these ranks.
            local: this rank's elements.
        """
        if self.progress is not None:
            self.progress.close()
        self.values = self._job = self._host = None
        for whole in self.wholes:
            whole.__dict__["view"] = whole._grad = None
        self._register(self.spread.params)
        self._connect(spread)
        self._lay_out(local)
        self._prepare()
        for part in spread.params:
            shared_of(part).bump()

    def describe(self) -> str:
        """Return the unit for messages: name, size, first and last parameter."""
        nbytes, names = self.spread.size * np.dtype(self.dtype).itemsize, self.spread.names
        return (
            f"group {self.name!r} ({nbytes / 2**20:.2f} MiB {np.dtype(self.dtype)}, "
            f"{names[0]} … {names[-1]})"
        )

    # ------------------------------------------------------------------ whole parameters
    @property
    def gathered(self) -> bool:
        """Whether the whole parameters are there."""
        return self.values is not None

    def start(self, dtype: Any = None) -> None:
        """Start to gather, if that is not under way or done.

        Ranks: all, each unit as often.
        Cost: (P-1)/P of the bytes of the whole parameters to each rank, and from it.
        """
        if self.values is not None and self._versions != self._counts():
            self.drop()  # they were updated
        if self.values is not None or self._host is not None:
            return
        self._check_parts()
        self.gathers += 1
        dtype, spread = self.dtype if dtype is None else dtype, self.spread
        if self.progress is None:
            self._host = self.local.astype(dtype, copy=False)
            return
        host = self._host = np.empty(spread.size, dtype)
        host[spread.mine] = to_device(self.local, CPU)
        channel, call = self.channel, f"all_gather(parameters of {self.describe()})"
        nothing: list[list[Any]] = [[] for _ in range(channel.size)]

        def begin() -> Work:
            x = Exchange(channel, [host], nothing, np.add, self.number * PHASES, call)
            return Reduction(x, gather_parts(x, spread.owned))

        self._job = self.progress.submit(begin)

    def gather(self, dtype: Any = None) -> None:
        """Return when the whole parameters are there, in their place in the modules."""
        self.start(dtype)
        if self.values is None:
            self._arrive()
            self._note_changes()
        self._register(self.wholes)

    def gather_late(self) -> None:
        """Gather for an operation that reads a whole parameter which is not there.

        Raises:
            GradError: the parameters have changed since the forward that backward goes through.
        """
        changed = self._versions != self._counts()
        if changed:
            raise GradError(
                f"backward({self.describe()}): one of the variables needed for gradient "
                "computation has been modified by an inplace operation: these parameters were "
                "updated after forward; call backward before optimizer.step()"
            )
        self.start()
        self._arrive()

    def _arrive(self) -> None:
        """Wait for the values and let the whole parameters have them."""
        if self._job is not None:
            self._job.wait()
        host, self._job, self._host = self._host, None, None
        assert host is not None
        values = self.values = to_device(host, device_of(self.local))
        for whole, part, span in zip(
            self.wholes, self.spread.params, self.spread.spans, strict=True
        ):
            whole.__dict__["view"] = values[span].reshape(whole._shape)
            whole._requires = part._requires

    def _counts(self) -> list[int]:
        return [shared_of(p).count for p in self.spread.params]

    def _note_changes(self) -> None:
        """Let graphs know that whole parameters which they saved are no longer what they were."""
        counts = self._counts()
        for whole, old, new in zip(self.wholes, self._versions, counts, strict=False):
            if old != new:
                shared_of(whole).bump()
        self._versions = counts

    def drop(self) -> None:
        """Let the whole parameters go; parts take their place in the modules."""
        if self.held:
            return
        if self._host is not None:  # other ranks gather it too
            self._arrive()
        self.values = None
        for whole in self.wholes:
            whole.__dict__["view"] = None
        self._register(self.spread.params)

    def keep(self) -> None:
        """Take this rank's part of what the whole parameters are now."""
        assert self.values is not None
        self.local[...] = self.values[self.spread.mine]
        for part in self.spread.params:
            shared_of(part).bump()

    def _register(self, params: Sequence[Any]) -> None:
        for param, homes in zip(params, self.homes, strict=True):
            for module, name in homes:
                module._parameters[name] = param

    def _check_parts(self) -> None:
        for part, name in zip(self.spread.params, self.spread.names, strict=True):
            if part.array.size and part.array.base is not self.local:
                raise DistributedError(
                    f"fully_shard({self.name}): the memory of {name} is no longer where "
                    "fully_shard laid it out; move and convert modules before fully_shard"
                )

    # ------------------------------------------------------------------ gradients
    @property
    def trained(self) -> list[int]:
        """The places of the parameters that get gradients."""
        return [i for i, p in enumerate(self.spread.params) if p._requires]

    @property
    def drops_in_backward(self) -> bool:
        """Whether it can be dropped when all gradients are there: nothing else needs it then.

        What a frozen parameter was used for may come later in backward.
        """
        return self.drops_after_backward and all(p._requires for p in self.spread.params)

    @property
    def wire_bytes(self) -> int:
        """Bytes of the gradients on their way."""
        return self.spread.size * int(np.dtype(self.wire_dtype).itemsize)

    def pack(self) -> list[int]:
        """Move the gradients to ``wire``, with zeros for none; return whose there were."""
        used = []
        for place, (whole, span) in enumerate(zip(self.wholes, self.spread.spans, strict=True)):
            grad = whole._grad
            if grad is None:
                self.wire[span] = 0
                continue
            self.wire[span] = to_device(grad.array, CPU).reshape(-1)
            used.append(place)
            whole._grad = None
        return used

    def collect(self) -> None:
        """Move the sum of this rank's elements to where gradients lie, if there are none yet."""
        if all(part.grad is None for part in self.spread.params):
            self.grad[...] = to_device(self.total.total(), device_of(self.local))
            self.collected = True

    def settle(self, divisor: int | None, used: Sequence[bool]) -> None:
        """Turn the sum of this rank's elements into means, and add them to the parts' gradients."""
        mean, collected = self.grad, self.collected
        if not collected:
            mean = to_device(self.total.total(), device_of(self.local)).astype(self.local.dtype)
        self.collected = False
        if divisor is not None:
            mean /= divisor
        for place, part in enumerate(self.spread.params):
            if not (used[place] and part._requires):
                continue
            piece = mean[self.spread.local(place)]
            if part.grad is None:
                part.grad = buffer = part._grad_buffer
                if not collected and buffer is not None:
                    buffer.array[...] = piece
            else:
                part.grad.array += piece
            if part._post_hooks is not None:
                call_leaf_hooks(part)


def _progress_of(channel: ProcessGroup) -> Progress:
    """Return what moves the transfers of all units on a channel."""
    found = _progresses.get(id(channel))
    if found is None:
        found = _progresses[id(channel)] = start_progress(channel)
    return found


def next_number(channel: ProcessGroup) -> int:
    """Return a number that no other unit on the channel has; alike on all ranks."""
    number: int = channel.__dict__.get("_units", _FIRST_NUMBER)
    channel.__dict__["_units"] = number + 1
    return number


_progresses: WeakValueDictionary[int, Progress] = WeakValueDictionary()
