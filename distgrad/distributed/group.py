"""Process groups: the collectives every backend offers and the checks all backends share.

A backend starts transfers; everything else rests on that one primitive. ``start_all_reduce`` hands
the started `Work` to the caller, the blocking collectives wait for it.

Note [Channels]: collectives match by the order in which each rank calls them, so users that do not
know each other need an order of their own each. A group has three channels, each a group object
with its own communicator: "user" (the default), "buckets" (the reducer), "control" (agreement and
health). ``group.channel("buckets")`` returns the sibling; creating it is no communication.
"""

from __future__ import annotations

import hashlib
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

import numpy as np

from distgrad.config import nearest
from distgrad.distributed.board import Board, digest_of
from distgrad.distributed.board import Plan as BoardPlan
from distgrad.distributed.collective import Agenda, Collective, Steps, transferred
from distgrad.distributed.reduce_op import UFUNCS
from distgrad.distributed.shared import Slab
from distgrad.distributed.watch import Watch
from distgrad.distributed.work import HostArray, Transfer, Work
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DistributedError,
    DtypeError,
    describe,
    signature,
)

if TYPE_CHECKING:
    from distgrad.distributed.nccl import Gpus

T = TypeVar("T")
G = TypeVar("G", bound="ProcessGroup")

CHANNELS = ("user", "buckets", "control")
DEFAULT_TIMEOUT_S = 1800.0

# The kinds of dtype (numpy.dtype.kind) that each reduction takes.
OPS = {
    "sum": "iufc",
    "prod": "iufc",
    "min": "biuf",
    "max": "biuf",
    "avg": "fc",
    "band": "biu",
    "bor": "biu",
    "bxor": "biu",
}
ANY_RANK = -1  # as the source of a message: whoever sends first
MESSAGES = ("send", "recv")


class ProcessGroup(ABC):
    """Ranks that work together, seen from one of them.

    Ranks: every collective must be called by all ranks of the group, on the same channel in the
    same order, with arrays of the same dtype and shape. All arrays are NumPy arrays.
    """

    backend: ClassVar[str]
    compares_calls: ClassVar[bool] = False  # transfers of different calls raise on every rank

    def __init__(
        self,
        rank: int,
        size: int,
        local_rank: int,
        local_size: int,
        name: str = "user",
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.local_size = local_size
        self.name = name
        self.timeout_s = timeout_s
        self.thread_safe = True  # another thread may drive this group beside its siblings
        self.sequence = 0  # transfers started on this channel, without messages
        self.collectives = 0  # collectives of several steps begun on it
        self.barriers = 0  # monitored ones
        self.agenda = Agenda()  # one for all groups of this rank that stem from another
        self.ranks = tuple(range(size))  # the members' numbers in the default group
        self.origins = self.ranks  # and in the job as it began, before any rank was lost
        self.description = ""
        self.children: list[ProcessGroup] = []  # sub-groups, which end with this group
        self.closed = False
        self.siblings: dict[str, ProcessGroup] = {name: self}
        self.hosts: list[list[int]] = [[r] for r in range(size)]  # which ranks share memory
        self.gpus: Gpus | None = None  # what connects tensors on GPUs, once any were there
        self.nccl_wanted = False  # by name: its absence is worth a warning
        self.watch: Watch | None = None
        self.board: Board | None = None  # where the ranks meet if all are on one host

    def __repr__(self) -> str:
        label = f", {self.description}" if self.description else ""
        place = f"rank {self.rank} of {self.size}"
        return f"ProcessGroup({self.backend}, {place}, {self.name!r}{label})"

    # What a backend provides

    @abstractmethod
    def _start(self, transfer: Transfer) -> Work:
        """Return the work of ``transfer``, started."""

    @abstractmethod
    def abort(self, code: int, reason: str) -> NoReturn:
        """End the whole job with exit status ``code``, saying ``reason``.

        On threads and on one process there is no job to end: every rank raises DistributedError.
        """

    def _agree(self, call: str) -> None:  # noqa: B027  a backend that compares later needs nothing
        """Raise on every rank when the ranks are not all about to make the same ``call``."""

    def takes_gpu_memory(self) -> bool:
        """Return whether arrays on a GPU may be sent as they are."""
        return False

    def _share(self, nbytes: int, signals: int) -> Slab | None:
        """Return common memory of the ranks of this host, or None where there is none."""
        return None

    @abstractmethod
    def _part(self, places: Sequence[int], timeout_s: float) -> ProcessGroup:
        """Return a new group of the ranks ``places`` of this one; called by these alone."""

    def subgroup(
        self, places: Sequence[int], timeout_s: float | None = None, description: str = ""
    ) -> ProcessGroup:
        """Return a new group of some ranks of this one, in the order given.

        Args:
            places: their numbers in this group; the calling rank's is among them.
            timeout_s: seconds that any one wait may take; None takes this group's.
            description: for messages.

        Ranks: those of ``places``.
        """
        made = self._part(places, self.timeout_s if timeout_s is None else timeout_s)
        for sibling in made.siblings.values():
            sibling.agenda = self.agenda
            sibling.ranks = tuple(self.ranks[place] for place in places)
            sibling.origins = tuple(self.origins[place] for place in places)
            sibling.description, sibling.nccl_wanted = description, self.nccl_wanted
        self.children.append(made)
        return made

    def shared_memory(self, nbytes: int, signals: int) -> Slab | None:
        """Return memory that all ranks of this host see, or None.

        None where hosts have unequal numbers of ranks, or ranks that do not follow each other, or
        where a rank gets no such memory.

        Args:
            nbytes: of each rank.
            signals: numbers that each rank can set.

        Ranks: a collective, with the same arguments.
        """
        sizes = {len(ranks) for ranks in self.hosts}
        ordered = [rank for ranks in self.hosts for rank in ranks] == list(range(self.size))
        if len(sizes) > 1 or sizes == {1} or not ordered:
            return None
        return self._share(nbytes, signals)

    def close(self) -> None:
        """Release the group on all its channels, and its sub-groups; later calls raise."""
        for sibling in self.siblings.values():
            sibling.closed, sibling.board = True, None
            if sibling.gpus is not None:
                sibling.gpus.close()
            for child in sibling.children:
                child.close()

    # Channels and the non-blocking primitive

    def channel(self, name: str) -> ProcessGroup:
        """Return this group's sibling for the channel ``name``; see Note [Channels].

        Args:
            name: "user", "buckets" or "control".
        """
        if name not in CHANNELS:
            known = ", ".join(CHANNELS)
            raise ArgumentError(
                f"channel({name!r}): is none of {known}{nearest(name, CHANNELS)}; "
                "a group has these channels only"
            )
        return self.siblings[name]

    def start_all_reduce(self, array: HostArray, op: str = "sum", tag: str = "") -> Work:
        """Start to replace ``array`` by its reduction over the ranks and return the work.

        ``array`` must be neither read nor written until the work is complete. Every rank gets the
        same bits.

        Args:
            array: C-contiguous and writable.
            op: sum, prod, min, max; avg for floating dtypes; band, bor for integers and bool.
            tag: what this is about, such as "bucket 3"; compared between ranks like dtype and shape
                where the backend sees it (threads), and part of error messages.

        Cost: 2 (p - 1) / p of the array's bytes to and from each rank.
        """
        call = _call("all_reduce", array, {"op": op, "tag": tag} if tag else {"op": op})
        self._check_op(call, array, op)
        _check_in_place(call, array)
        return self._begin(Transfer("all_reduce", call, array, array, op))

    # Collectives

    def all_reduce(self, array: HostArray, op: str = "sum") -> None:
        """Replace ``array`` by its reduction over the ranks, the same bits on every rank.

        Args, Cost: as for `start_all_reduce`.
        """
        if self.agenda.open:
            self.agenda.settle(self)
        board = self.board
        if board is None:
            self._run(_all_reduce_of(self, array, op))
            return
        try:
            plan = board.plans.get((op, array.dtype, array.shape))
            known = plan is not None and array.flags.carray  # all was checked before
        except AttributeError:  # it is no array
            known = False
        if not known:
            transfer = _all_reduce_of(self, array, op)
            if not board.takes(array.dtype):
                self._run(transfer)
                return
            plan = board.plan((op, array.dtype, array.shape), transfer.call, op, array)
        assert plan is not None
        self.sequence += 1
        if not board.reduce_now(plan, array):
            _raise_disagreement(self, plan.call, plan.call)

    def all_reduce_planned(self, board: Board, plan: BoardPlan, array: HostArray) -> None:
        """Replace ``array`` by its reduction on the board of this channel, as planned there."""
        if self.agenda.open:
            self.agenda.settle(self)
        self.sequence += 1
        self.collectives += 1
        if not board.reduce_now(plan, array):
            _raise_disagreement(self, plan.call, plan.call)

    def broadcast(self, array: HostArray, src: int = 0) -> None:
        """Replace ``array`` by that of rank ``src``."""
        call = _call("broadcast", array, {"src": src})
        self._check_peer(call, "src", src)
        _check_in_place(call, array)
        self._run(Transfer("broadcast", call, array, array, peer=src))

    def all_gather(self, array: HostArray) -> HostArray:
        """Return the arrays of all ranks, stacked in rank order along a new leading axis.

        Shape: [*shape] -> [size, *shape]
        """
        call = _call("all_gather", array, {})
        source = _contiguous(array)
        target = np.empty((self.size, *source.shape), source.dtype)
        self._run(Transfer("all_gather", call, source, target))
        return target

    def reduce_scatter(self, array: HostArray, op: str = "sum") -> HostArray:
        """Return this rank's slice of the reduction of ``array`` over the ranks.

        Shape: [size * k, *rest] -> [k, *rest]
        Cost: (p - 1) / p of the array's bytes to and from each rank.
        """
        call = _call("reduce_scatter", array, {"op": op})
        self._check_op(call, array, op)
        if array.ndim == 0 or array.shape[0] % self.size:
            raise ArgumentError(
                f"{call}: dimension 0 cannot be cut into {self.size} equal slices, one for each "
                "rank; pad the array"
            )
        source = _contiguous(array)
        target = np.empty((array.shape[0] // self.size, *array.shape[1:]), array.dtype)
        self._run(Transfer("reduce_scatter", call, source, target, op))
        return target

    def gather(self, array: HostArray, dst: int = 0) -> HostArray | None:
        """Return the arrays of all ranks, stacked as by `all_gather`, on rank ``dst``; else None.

        Shape: [*shape] -> [size, *shape]
        """
        call = _call("gather", array, {"dst": dst})
        self._check_peer(call, "dst", dst)
        source = _contiguous(array)
        leading = self.size if self.rank == dst else 0
        target = np.empty((leading, *source.shape), source.dtype)
        self._run(Transfer("gather", call, source, target, peer=dst))
        return target if self.rank == dst else None

    def barrier(self) -> None:
        """Return when every rank has called it."""
        nothing = np.empty(0, np.uint8)
        self._run(Transfer("barrier", "barrier()", nothing, nothing))

    def all_gather_object(self, value: T) -> list[T]:
        """Return the values of all ranks in rank order.

        Values travel as pickles, so only ranks of one job, which trust each other, may use it.
        """
        call = "all_gather_object()"
        self._agree(call)
        return self._exchange_objects(call, value)

    def broadcast_object(self, value: T, src: int = 0) -> T:
        """Return the value of rank ``src``; travels as a pickle, as in `all_gather_object`."""
        call = f"broadcast_object(src={src})"
        self._check_peer(call, "src", src)
        self._agree(call)
        data = np.frombuffer(pickle.dumps(value) if self.rank == src else b"", np.uint8).copy()
        length = np.array([data.size], np.int64)
        self._move(call, "broadcast", length, length, src)
        if self.rank != src:
            data = np.empty(int(length[0]), np.uint8)
        self._move(call, "broadcast", data, data, src)
        result: T = pickle.loads(data.tobytes())
        return result

    # Messages between two ranks

    def send(self, array: HostArray, dst: int, tag: int = 0) -> None:
        """Send ``array`` to rank ``dst`` and return when ``array`` may be changed again."""
        call = _call("send", array, {"dst": dst, "tag": tag})
        self._check_peer(call, "dst", dst, other=True)
        source = _contiguous(array)
        self._begin(Transfer("send", call, source, source, peer=dst, tag=tag)).wait()

    def recv(self, array: HostArray, src: int, tag: int = 0) -> None:
        """Replace ``array`` by the next array that rank ``src`` sends with ``tag``."""
        call = _call("recv", array, {"src": src, "tag": tag})
        self._check_peer(call, "src", src, other=True)
        _check_in_place(call, array)
        self._begin(Transfer("recv", call, array, array, peer=src, tag=tag)).wait()

    def start_send(self, array: HostArray, dst: int, tag: int, call: str) -> Work:
        """Start to send ``array``, which must not change until the work is complete.

        Nothing is checked: for algorithms that are made of messages. ``call`` names their whole.
        """
        return self._begin(Transfer("send", call, array, array, peer=dst, tag=tag))

    def start_recv(
        self, array: HostArray, src: int, tag: int, call: str, senders: list[int] | None = None
    ) -> Work:
        """Start to receive into ``array``; as `start_send`.

        Args:
            src: a rank, or ``ANY_RANK``.
            senders: gets the number of the rank that sent the message.
        """
        transfer = Transfer("recv", call, array, array, peer=src, tag=tag, senders=senders)
        return self._begin(transfer)

    # Inside

    def complete(self, call: str, steps: Steps) -> None:
        """Make a collective of several steps, and return when it is complete."""
        self.agenda.settle(self)
        collective = Collective(self, call, steps)
        if not collective.advance():
            self.agenda.add(collective)
        collective.wait()

    def submit(self, call: str, steps: Steps) -> Collective:
        """Put a collective of several steps on the agenda and return it."""
        collective = Collective(self, call, steps)
        self.agenda.add(collective)
        return collective

    def launch(
        self,
        collective: str,
        call: str,
        source: HostArray,
        target: HostArray,
        op: str = "",
        peer: int = -1,
        sends: Sequence[int] = (),
        receives: Sequence[int] = (),
    ) -> Work:
        """Return the work of a step of a collective, started; nothing is checked."""
        transfer = Transfer(
            collective, call, source, target, op, peer, sends=sends, receives=receives
        )
        return self._launch(transfer)

    def disagree(self, said: Sequence[str]) -> NoReturn:
        """Raise the error of ranks that said different things."""
        raise DistributedError(disagreement(said, self.name))

    def _begin(self, transfer: Transfer) -> Work:
        if transfer.collective not in MESSAGES:
            self.agenda.settle(self)
        return self._launch(transfer)

    def _launch(self, transfer: Transfer) -> Work:
        if self.closed:
            raise DistributedError(
                f"{transfer.call}: the process group of rank {self.rank} of {self.size} is closed; "
                "communicate before destroy_process_group()"
            )
        self.sequence += transfer.collective not in MESSAGES
        return self._start(transfer)

    def _run(self, transfer: Transfer) -> None:
        if self.board is not None:
            t = transfer
            steps = transferred(self, t.collective, t.call, t.source, t.target, t.op, t.peer)
            self.complete(t.call, steps)
            return
        if not self.closed:
            self._agree(transfer.call)
        self._begin(transfer).wait()

    def _move(
        self, call: str, collective: str, source: HostArray, target: HostArray, peer: int = -1
    ) -> HostArray:
        """Run a part of ``call``, which its caller has already checked and agreed on."""
        self._begin(Transfer(collective, call, source, target, peer=peer)).wait()
        return target

    def _exchange(self, call: str, array: HostArray) -> HostArray:
        target = np.empty((self.size, *array.shape), array.dtype)
        return self._move(call, "all_gather", array, target)

    def _exchange_objects(self, call: str, value: T) -> list[T]:
        data = np.frombuffer(pickle.dumps(value), np.uint8)
        lengths = self._exchange(call, np.array([data.size], np.int64))[:, 0]
        padded = np.zeros(int(lengths.max()), np.uint8)
        padded[: data.size] = data
        rows = self._exchange(call, padded)
        return [pickle.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]

    def _check_op(self, call: str, array: HostArray, op: str) -> None:
        if op not in OPS:
            raise ArgumentError(f"{call}: op is none of {', '.join(OPS)}{nearest(str(op), OPS)}")
        if dtype_kind(array.dtype) not in OPS[op]:
            fits = [name for name, kinds in OPS.items() if dtype_kind(array.dtype) in kinds]
            raise DtypeError(
                f"{call}: {op} does not take {array.dtype}"
                + (f", which takes {', '.join(fits)}" if fits else "")
                + "; cast the array first"
            )

    def _check_peer(self, call: str, what: str, peer: int, other: bool = False) -> None:
        if not 0 <= peer < self.size:
            raise ArgumentError(
                f"{call}: {what} {peer} is no rank of a group of {self.size}; "
                f"ranks are 0 to {self.size - 1}"
            )
        if other and peer == self.rank:
            raise ArgumentError(
                f"{call}: rank {self.rank} would exchange a message with itself; copy the array"
            )


class CompletedWork(Work):
    """Work that was complete when it was started."""

    __slots__ = ()

    def test(self) -> bool:
        """Return True."""
        return True

    def wait(self, timeout_s: float | None = None) -> None:
        """Return at once."""

    def is_completed(self) -> bool:
        """Return True."""
        return True


def link_channels(make: Callable[[str], G]) -> G:
    """Return the user channel of a new group that has a channel ``make(name)`` for each name."""
    groups = {name: make(name) for name in CHANNELS}
    for group in groups.values():
        group.siblings = dict(groups)
    return groups["user"]


def check_same(group: ProcessGroup, what: str, fingerprint: bytes | str) -> None:
    """Return if every rank gives the same ``what`` and ``fingerprint``, else raise on every rank.

    Args:
        what: name of the thing compared, for the message: "parameters", "bucket plan".
        fingerprint: its content, best as readable text; the message quotes the differing parts.

    Raises:
        DistributedError: the same text on every rank, naming the first rank that differs.

    Ranks: a collective. Cost: 16 bytes from each rank while they agree.
    """
    content = fingerprint.encode() if isinstance(fingerprint, str) else bytes(fingerprint)
    call = what if not content else f"check_same({what!r})"
    if group.board is not None:
        group.agenda.settle(group)
        same = group.board.meet(digest_of(what, content), call)
    else:
        digest = hashlib.blake2b(what.encode() + b"\0" + content, digest_size=16).digest()
        digests = group._exchange(call, np.frombuffer(digest, np.uint8))
        same = bool((digests == digests[0]).all())
    if not same:
        _raise_disagreement(group, call, _quotable(what, content))


def _raise_disagreement(group: ProcessGroup, call: str, said: str) -> NoReturn:
    """Tell all ranks what each of them said."""
    group.disagree(group._exchange_objects(call, said))


def _all_reduce_of(group: ProcessGroup, array: HostArray, op: str) -> Transfer:
    """Return the transfer, checked."""
    call = _call("all_reduce", array, {"op": op})
    group._check_op(call, array, op)
    _check_in_place(call, array)
    return Transfer("all_reduce", call, array, array, op)


def disagreement(said: Sequence[str], channel: str) -> str:
    """Return the message for ranks that said different things, the same on every rank."""
    first = next(rank for rank, text in enumerate(said) if text != said[0])
    views: dict[str, list[int]] = {}
    for rank, text in enumerate(said):
        views.setdefault(text, []).append(rank)
    each = "; ".join(
        f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}: {_short(text)}"
        for text, ranks in views.items()
    )
    return (
        f"collective on channel {channel!r}: rank {first} differs from rank 0: "
        f"{_apart(said[0], said[first])}{each}; make the same calls in the same order with the "
        "same dtype and shape on every rank"
    )


def tree_reduce(op: str, arrays: Sequence[HostArray]) -> HostArray:
    """Return the reduction of ``arrays`` by an aligned binary tree over their order.

    The order of additions depends on the number of arrays alone, so the bits do too. A bfloat16 is
    added in float32 and rounded once.

    Example:
        >>> tree_reduce("sum", [np.array([1.0]), np.array([2.0]), np.array([4.0])])
        array([7.])
    """
    dtype = arrays[0].dtype
    level = [a.astype(np.float32) if is_bfloat16(dtype) else a for a in arrays]
    combine = UFUNCS[op]
    with np.errstate(all="ignore"):  # inf and nan are results here, as on the wire
        while len(level) > 1:
            pairs = [combine(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
            level = pairs + level[len(pairs) * 2 :]
    result = level[0]
    if op == "avg":
        result = np.divide(result, len(arrays))
    return result.astype(dtype, copy=False)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Return whether ``dtype`` is ml_dtypes' bfloat16, without importing ml_dtypes."""
    return dtype.name == "bfloat16"


def dtype_kind(dtype: np.dtype[Any]) -> str:
    """Return NumPy's letter for the kind of ``dtype``, with bfloat16 among the floats."""
    return "f" if is_bfloat16(dtype) else dtype.kind


_QUOTE = 300  # characters of a fingerprint that a message shows


def _call(collective: str, array: HostArray, options: dict[str, object]) -> str:
    if not isinstance(array, np.ndarray):
        raise ArgumentTypeError(
            f"{collective}(array: {describe(array)}): array must be a numpy.ndarray, not "
            f"{type(array).__name__}; pass the array of a tensor, or numpy.asarray(...)"
        )
    call = signature(collective, {"array": array}, options)
    if array.dtype.hasobject:
        raise DtypeError(f"{call}: an array of objects has no bytes to send; use an object call")
    return call


def _check_in_place(call: str, array: HostArray) -> None:
    if not array.flags.c_contiguous:
        raise ArgumentError(
            f"{call}: works in place on C-contiguous arrays, and this one has strides "
            f"{array.strides}; pass numpy.ascontiguousarray(array) and copy the result back"
        )
    if not array.flags.writeable:
        raise ArgumentError(f"{call}: works in place and this array is read-only; pass a copy")


def _contiguous(array: HostArray) -> HostArray:
    return np.asarray(array, order="C")  # ascontiguousarray would give a 0-d array a dimension


def _quotable(what: str, content: bytes) -> str:
    if not content:
        return what
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = hashlib.blake2b(content, digest_size=16).hexdigest()
    return f"{what}: {text}"


def _short(text: str) -> str:
    return text if len(text) <= _QUOTE else text[: _QUOTE - 3] + "..."


def _apart(a: str, b: str) -> str:
    """Where two long texts part; short ones are quoted in full anyway."""
    if max(len(a), len(b)) <= _QUOTE:
        return ""
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
    cut = slice(max(0, at - _QUOTE // 4), at + _QUOTE // 4)
    return f"the texts part at ...{a[cut]!r}... against ...{b[cut]!r}...; "
