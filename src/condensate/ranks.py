"""The processes of one run: which of them this is, what falls to it, and what they tell each other."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from hashlib import sha256
from typing import Any, TypeVar

import torch
from torch import Tensor

from condensate.errors import UserError

T = TypeVar("T")

# Seconds, for what hangs or is cut off: a process that ends takes the others with it at once.
TIMEOUT = 1800.0
# What is gathered may take one process as long as it takes to train a network, while another has none to train.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """The processes of one run, each with a device of its own, and which of them this is.

    Every process holds the same synthetic set and draws from the same streams. Work is dealt out by ``share``, what
    was found is summed or gathered, and the first process alone writes files. In one process nothing of this does
    anything. All methods but ``share`` and ``tell`` are for all processes together, in the same order in each, and
    within ``joined``:

        with Ranks.of_torchrun().joined() as ranks: ...

    Args:
        rank: Number of this process, from 0.
        world: How many there are.
        local: Number of this process on its host: that of its device.
        store: Through which they met.
        group: Of those that wait for each other as long as it takes.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    store: Any = field(default=None, repr=False, compare=False)
    group: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def of_torchrun(cls, environment: Mapping[str, str] = os.environ) -> "Ranks":
        """The processes that torchrun, or whoever sets the same variables, started; this one alone if it did not."""
        world = int(environment.get("WORLD_SIZE", "1"))
        if world == 1:
            return ALONE
        from torch.distributed.rendezvous import rendezvous

        try:
            store, rank, world = next(rendezvous("env://", timeout=timedelta(seconds=TIMEOUT)))
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"WORLD_SIZE is {world}, but the other processes cannot be met ({error}); start them by torchrun, or "
                "unset WORLD_SIZE"
            ) from error
        return cls(rank, world, int(environment.get("LOCAL_RANK", rank)), store)

    @contextmanager
    def joined(self, timeout: float = TIMEOUT) -> Iterator["Ranks"]:
        """These processes, which can tell each other things while the block runs; see ``torch.distributed``.

        Args:
            timeout: Seconds that one of them waits for another's gradients before it gives up.
        """
        if self.world == 1:
            yield self
            return
        from torch import distributed

        on_cuda = torch.cuda.is_available() and distributed.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
        with self._meeting():
            distributed.init_process_group(
                backend, store=self.store, rank=self.rank, world_size=self.world, timeout=timedelta(seconds=timeout)
            )
        try:
            with self._meeting():
                group = distributed.new_group(backend="gloo", timeout=PATIENCE)
            yield replace(self, group=group)
        finally:
            distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows things."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Those that fall to this process: as many as to any other, or one less."""
        return list(items[self.rank :: self.world])

    def sum_gradients_(self, parameters: Iterable[Tensor], loss: Tensor) -> None:
        """Sum the gradients of ``parameters`` and the loss over all processes, in place; none stands for zero."""
        if self.world == 1:
            return
        from torch import distributed

        summed = [loss]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            summed.append(parameter.grad)
        self._in_place(summed, distributed.all_reduce)

    def same_(self, tensors: Iterable[Tensor]) -> None:
        """Give ``tensors`` everywhere the values that they have in the first process."""
        if self.world == 1:
            return
        from torch import distributed

        self._in_place(list(tensors), lambda flat: distributed.broadcast(flat, 0))

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; small ones, which are pickled."""
        if self.world == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.world
        with self._meeting():
            distributed.all_gather_object(values, value, self.group)
        return values

    def once(self, function: Callable[[], T]) -> T:
        """What ``function`` returns in the first process, where alone it is called; a user's mistake is one in all."""
        if self.world == 1:
            return function()
        from torch import distributed

        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = function()
            except UserError as error:
                told[1] = str(error)
        with self._meeting():
            distributed.broadcast_object_list(told, 0, self.group)
        if told[1] is not None:
            raise UserError(told[1])
        found: T = told[0]
        return found

    def tell(self, line: str, grace: float = 2.0) -> bool:
        """Say on standard error why this process ends, unless another has said the same; whether all have come to it.

        Args:
            line: What to say.
            grace: Seconds to wait for others that end alike, so that none is taken for the one at fault.
        """
        if self.world == 1:
            print(line, file=sys.stderr)
            return True
        key, until, count = f"said {sha256(line.encode()).hexdigest()}", time.monotonic() + grace, 0
        try:
            count = self.store.add(key, 1)
            if count == 1:
                print(line, file=sys.stderr, flush=True)
            while count < self.world and time.monotonic() < until:
                time.sleep(0.02)
                count = self.store.add(key, 0)
        except RuntimeError:  # the place where they met is gone
            if not count:
                print(line, file=sys.stderr, flush=True)
        return count == self.world

    def _in_place(self, tensors: Sequence[Tensor], exchange: Callable[[Tensor], object]) -> None:
        """Exchange the values of ``tensors`` through one flat tensor a type."""
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            those = [tensor.detach() for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in those])
            with self._meeting():
                exchange(flat)
            for tensor, values in zip(those, flat.split([tensor.numel() for tensor in those]), strict=True):
                tensor.copy_(values.view(tensor.shape))

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """Tell of another process that ended or does not come."""
        try:
            yield
        except RuntimeError as error:
            raise ConnectionAbortedError(
                f"process {self.rank} of {self.world} lost another one: it ended, or did not come within the timeout; "
                f"its own output says why. Seen from here: {' '.join(str(error).split())[:200]}"
            ) from error


ALONE = Ranks()
