"""What a collective with ``async_op=True`` returns, and what comes after it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from distgrad.distributed.work import Work as Transfer
from distgrad.errors import DistributedError
from distgrad.futures import Future
from distgrad.tensor import Tensor


class Work:
    """A collective or a message under way, on tensors.

    The tensors must be neither read nor written until it is complete. `wait` raises what went
    wrong, on this rank or between the ranks.

    Args:
        transfer: what moves the data.
        finish: brings it into the tensors; called once, by the thread that waits or asks.
        tensors: that hold the result.
        senders: gets the rank that sent a message.
    """

    def __init__(
        self,
        transfer: Transfer,
        finish: Callable[[], None],
        tensors: list[Tensor],
        senders: list[int] | None = None,
    ) -> None:
        self._transfer, self._finish, self._tensors = transfer, finish, tensors
        self._senders = [] if senders is None else senders
        self._over = False
        self._error: Exception | None = None
        self._future: Future[list[Tensor]] | None = None

    def __repr__(self) -> str:
        return f"Work({self._transfer.call}, {'complete' if self._over else 'under way'})"

    def is_completed(self) -> bool:
        """Return whether it is over, well or badly, after giving it a push; never waits."""
        if not self._over:
            try:
                if self._transfer.test():
                    self._complete()
            except Exception as error:
                self._complete(error)
        return self._over

    def wait(self, timeout: timedelta | float | None = None) -> bool:
        """Return True when it is complete and the tensors hold the result.

        Args:
            timeout: a duration, or seconds; None takes the group's.

        Raises:
            DistributedError: the ranks disagree, one has failed, or the time is over.
            DistgradError: what was wrong with the call on this rank.
        """
        if not self._over:
            limit = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
            try:
                self._transfer.wait(limit)
            except Exception as error:
                if self._transfer.is_completed():
                    self._complete(error)
                raise
            self._complete()
        if self._error is not None:
            raise self._error
        return True

    def synchronize(self) -> None:
        """Wait."""
        self.wait()

    def is_success(self) -> bool:
        """Return whether it is over and nothing went wrong."""
        return self.is_completed() and self._error is None

    def exception(self) -> Exception | None:
        """Return what went wrong, None while nothing has."""
        self.is_completed()
        return self._error

    def result(self) -> list[Tensor]:
        """Wait; return the tensors that hold the result."""
        self.wait()
        return self._tensors

    def source_rank(self) -> int:
        """Return the rank in the group that sent the message.

        Raises:
            DistributedError: no message has come yet, or this is none.
        """
        if not self._senders:
            raise DistributedError(
                f"{self._transfer.call}: source_rank() is known when a receive is complete; "
                "wait() first"
            )
        return self._senders[0]

    def get_future(self) -> Future[list[Tensor]]:
        """Return a future of the list of tensors that hold the result.

        Its callbacks run when somebody waits for it, or for this work.
        """
        if self._future is None:
            self._future = Future(push=self._push)
            if self._over:
                self._settle()
        return self._future

    def _push(self) -> None:
        self.is_completed()

    def _complete(self, error: Exception | None = None) -> None:
        self._over, self._error = True, error
        if error is None:
            self._finish()
        self._settle()

    def _settle(self) -> None:
        if self._future is None:
            return
        if self._error is None:
            self._future.set_result(self._tensors)
        else:
            self._future.set_exception(self._error)
