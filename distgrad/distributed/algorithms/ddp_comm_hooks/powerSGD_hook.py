"""Gradients as products of two thin matrices, after one step of the power iteration.

Note [PowerSGD]
    A gradient of at least two dimensions is a matrix M [n, m] on each rank. With Q [m, r], alike on
    all ranks, P = mean(M Q) is averaged over the ranks and made orthonormal; then Q = mean(Mᵀ P) is
    averaged, and P Qᵀ takes the place of the mean gradient: r (n + m) numbers travel instead of
    n m. What is lost, M - P Qᵀ, is added to the next gradient (error feedback), and Q is the start
    of the next iteration (warm start). Gradients that are too small to gain travel as they are.
    (Vogels, Karimireddy, Jaggi, "PowerSGD", 2019.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from distgrad.backend.device import array_namespace, device_of, to_device
from distgrad.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from distgrad.distributed.algorithms.ddp_comm_hooks.topk_hook import ErrorMemory
from distgrad.distributed.comm_hooks import GradBucket, divided
from distgrad.distributed.group import ProcessGroup
from distgrad.errors import ArgumentError
from distgrad.futures import Future, collect_all
from distgrad.tensor import Tensor, wrap


class PowerSGDState:
    """Options of PowerSGD, and what it keeps between steps.

    Args:
        process_group: the ranks; default is the group of the DistributedDataParallel.
        matrix_approximation_rank: r; more is closer and costs more bytes.
        start_powerSGD_iter: steps with the plain average before.
        min_compression_rate: compress a gradient only if that saves more than this factor.
        use_error_feedback: add what was lost to the next gradient.
        warm_start: start from the last Q; else from random numbers.
        orthogonalization_epsilon: added to norms in the Gram-Schmidt process; 0 takes QR instead.
        random_seed: of the first Q, alike on all ranks.
    """

    def __init__(
        self,
        process_group: ProcessGroup | None,
        matrix_approximation_rank: int = 1,
        start_powerSGD_iter: int = 1000,
        min_compression_rate: float = 2,
        use_error_feedback: bool = True,
        warm_start: bool = True,
        orthogonalization_epsilon: float = 0,
        random_seed: int = 0,
    ) -> None:
        if matrix_approximation_rank < 1:
            raise ArgumentError(
                f"PowerSGDState(matrix_approximation_rank={matrix_approximation_rank}): "
                "a rank is 1 or more"
            )
        if (use_error_feedback or warm_start) and start_powerSGD_iter <= 1:
            raise ArgumentError(
                f"PowerSGDState(start_powerSGD_iter={start_powerSGD_iter}): Expect "
                "`start_powerSGD_iter` > 1 if `use_error_feedback` or `warm_start` is enabled, "
                "because the buckets are laid out anew after the first step"
            )
        self.process_group = process_group
        self.matrix_approximation_rank = matrix_approximation_rank
        self.start_powerSGD_iter = start_powerSGD_iter
        self.min_compression_rate = min_compression_rate
        self.use_error_feedback, self.warm_start = use_error_feedback, warm_start
        self.orthogonalization_epsilon = orthogonalization_epsilon
        self.random_seed = random_seed
        self.iter = 0
        self.errors, self.factors = ErrorMemory(), ErrorMemory()
        self.numel_before, self.numel_after = 0, 0

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a checkpoint, which holds no process group."""
        return {**self.__dict__, "process_group": None}

    def compression_stats(self) -> tuple[float, int, int]:
        """Return the factor saved, and the numbers of elements before and after, since the start.

        Example:
            >>> PowerSGDState(None).compression_stats()
            (0, 0, 0)
        """
        rate = self.numel_before / self.numel_after if self.numel_after else 0
        return rate, self.numel_before, self.numel_after

    def maybe_increase_iter(self, bucket: GradBucket) -> None:
        """Count a step with its last bucket."""
        if bucket.is_last():
            self.iter += 1


def powerSGD_hook(state: PowerSGDState, bucket: GradBucket) -> Future[Tensor]:
    """Average each gradient as a product of thin matrices; see Note [PowerSGD]."""
    if state.iter < state.start_powerSGD_iter:
        state.maybe_increase_iter(bucket)
        return allreduce_hook(state.process_group, bucket)
    given = _with_error(state, bucket)
    matrices, rest = _split(state, bucket, bucket.buffer())
    averaged = _power_iteration(state, bucket, matrices, rest)
    state.maybe_increase_iter(bucket)

    def finish(done: Future[Any]) -> Tensor:
        done.value()
        if given is not None:
            lost = wrap(given - bucket.buffer().array)
            for sent_in_full in _split(state, bucket, lost)[1]:
                sent_in_full[...] = 0
            state.errors.put(bucket, lost.array)
        return bucket.buffer()

    return averaged.then(finish)


def batched_powerSGD_hook(state: PowerSGDState, bucket: GradBucket) -> Future[Tensor]:
    """Average the bucket as one square matrix: faster and less close than `powerSGD_hook`."""
    if state.iter < state.start_powerSGD_iter:
        state.maybe_increase_iter(bucket)
        return allreduce_hook(state.process_group, bucket)
    given = _with_error(state, bucket)
    flat = bucket.buffer().array
    side = math.ceil(math.sqrt(flat.size))
    square = array_namespace(flat).zeros(side * side, flat.dtype)
    square[: flat.size] = flat
    averaged = _power_iteration(state, bucket, [square.reshape(side, side)], [])
    state.maybe_increase_iter(bucket)

    def finish(done: Future[Any]) -> Tensor:
        done.value()
        flat[...] = square[: flat.size]
        if given is not None:
            state.errors.put(bucket, given - flat)
        return bucket.buffer()

    return averaged.then(finish)


def _split(state: PowerSGDState, bucket: GradBucket, flat: Tensor) -> tuple[list[Any], list[Any]]:
    """Return the parts of ``flat`` that are compressed, as matrices, and the others, as rows."""
    matrices, rest = [], []
    for piece in bucket.pieces(flat):
        array = piece.array
        rows = array.shape[0] if array.ndim > 1 else 0
        if rows and _gains(state, rows, array.size // rows):
            matrices.append(array.reshape(rows, -1))
        else:
            rest.append(array.reshape(-1))
    return matrices, rest


def _gains(state: PowerSGDState, rows: int, columns: int) -> bool:
    rank = min(rows, columns, state.matrix_approximation_rank)
    return bool((rows + columns) * rank * state.min_compression_rate < rows * columns)


def _with_error(state: PowerSGDState, bucket: GradBucket) -> Any:
    """Add what was lost before to the buffer; returns a copy of it, or None without feedback."""
    if not state.use_error_feedback:
        return None
    flat, held = bucket.buffer().array, state.errors.take(bucket)
    if held is not None:
        flat += held
    return flat.copy()


def _power_iteration(
    state: PowerSGDState, bucket: GradBucket, matrices: Sequence[Any], rest: Sequence[Any]
) -> Future[Any]:
    """Replace the matrices by P Qᵀ and the rest by its mean, in place."""
    size, group = bucket.group(state.process_group).size, state.process_group
    xp = array_namespace(bucket.buffer().array)
    qs = _start(state, bucket, matrices)
    waits: list[Future[Any]] = []
    if rest:
        together = divided(wrap(xp.concatenate(rest)), size)
        waits.append(bucket.all_reduce(together, group).then(lambda f: _unpack(f.value(), rest)))
    flat_p = [(m @ q).reshape(-1) for m, q in zip(matrices, qs, strict=True)]
    state.numel_before += sum(m.size for m in matrices) + sum(r.size for r in rest)
    state.numel_after += sum(p.size for p in flat_p) + sum(q.size for q in qs)
    state.numel_after += sum(r.size for r in rest)
    ps: list[Any] = []

    def find_q(done: Future[Tensor]) -> Future[Tensor]:
        mean = divided(done.value(), size).array
        ps.extend(_cut(mean, [(m.shape[0], q.shape[1]) for m, q in zip(matrices, qs, strict=True)]))
        for p in ps:
            orthogonalize(p, state.orthogonalization_epsilon)
        flat_q = [(m.T @ p).reshape(-1) for m, p in zip(matrices, ps, strict=True)]
        return bucket.all_reduce(wrap(xp.concatenate(flat_q)), group)

    def multiply(done: Future[Tensor]) -> None:
        mean = divided(done.value(), size).array
        found = _cut(mean, [q.shape for q in qs])
        for matrix, p, q in zip(matrices, ps, found, strict=True):
            matrix[...] = p @ q.T
        if state.warm_start:
            state.factors.put(bucket, found)

    if matrices:
        first = bucket.all_reduce(wrap(xp.concatenate(flat_p)), group)
        second: Future[Tensor] = first.then(find_q)
        waits.append(second.then(multiply))
    return collect_all(waits).then(lambda done: [future.value() for future in done.value()])


def _start(state: PowerSGDState, bucket: GradBucket, matrices: Sequence[Any]) -> list[Any]:
    """Return an orthonormal Q for each matrix: the last one, or random numbers."""
    found = state.factors.take(bucket) if state.warm_start else None
    if found is None:
        rng = np.random.default_rng([state.random_seed, state.iter, bucket.index()])
        found = []
        for matrix in matrices:
            rank = min(*matrix.shape, state.matrix_approximation_rank)
            host = rng.standard_normal((matrix.shape[1], rank)).astype(matrix.dtype)
            found.append(to_device(host, device_of(matrix)))
    for q in found:
        orthogonalize(q, state.orthogonalization_epsilon)
    return list(found)


def orthogonalize(matrix: Any, epsilon: float = 0) -> None:
    """Make the columns of ``matrix`` orthonormal in place.

    By QR in at least float32; with ``epsilon`` by the Gram-Schmidt process, where norms are that
    much larger, so that columns of zeros do no harm.
    """
    wide = matrix.astype(np.float32) if matrix.dtype.itemsize == 2 else matrix
    if epsilon == 0:
        matrix[...] = array_namespace(matrix).linalg.qr(wide)[0]
        return
    for i in range(wide.shape[1]):
        column = wide[:, i]
        column -= wide[:, :i] @ (wide[:, :i].T @ column)
        column /= array_namespace(matrix).sqrt((column * column).sum()) + epsilon
    matrix[...] = wide


def _cut(flat: Any, shapes: Sequence[tuple[int, int]]) -> list[Any]:
    """Return the matrices that lie one after the other in ``flat``."""
    out, at = [], 0
    for rows, columns in shapes:
        out.append(flat[at : at + rows * columns].reshape(rows, columns))
        at += rows * columns
    return out


def _unpack(together: Tensor, arrays: Sequence[Any]) -> None:
    at = 0
    for array in arrays:
        array[...] = together.array[at : at + array.size]
        at += array.size
