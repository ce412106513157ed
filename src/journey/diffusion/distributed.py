"""Training of one model by several processes, each of which computes a part of every mini-batch.

Mini-batches, timesteps and noise do not depend on the number of processes. The number changes only
rounding, and a training can be resumed with another number.
"""

import contextlib
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor, distributed, nn

from journey.engine.checks import require


@dataclass(frozen=True)
class BatchShare:
    """A process's part of every mini-batch: each `processes`-th example, from number `rank` on."""

    rank: int = 0
    processes: int = 1

    @property
    def part(self) -> slice:
        """Return the part, as an index of a mini-batch."""
        return slice(self.rank, None, self.processes)


def require_no_dropout(network: nn.Module, share: BatchShare) -> None:
    """Refuse dropout in several processes, whose random numbers differ. Raises ConfigError."""
    dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in network.modules())
    fits = share.processes == 1 or not dropout
    require(fits, "compute.processes", share.processes, "1 with a network that has dropout")


def step_gradient(
    losses: Tensor, size: int, parameters: Sequence[Tensor], share: BatchShare
) -> Tensor:
    """Set the gradients of `parameters` to those of a mini-batch's mean loss over all processes.

    Returns:
        The mean loss of the `size` examples, of which `losses` [b] are this process's part.
    """
    if share.processes == 1:
        loss = losses.mean()
        loss.backward()
        return loss.detach()

    # Sum over the examples of all processes, and divide by their number.
    if len(losses):
        losses.sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    loss = losses.detach().sum().view(1)
    total = torch.cat([loss, *(gradient.flatten() for gradient in gradients)])  # [1 + d]
    distributed.all_reduce(total)
    total /= size
    means = total[1:].split([p.numel() for p in parameters])
    for parameter, gradient, mean in zip(parameters, gradients, means, strict=True):
        parameter.grad = gradient.copy_(mean.view_as(parameter))  # in its layout of memory
    return total[0]


@contextlib.contextmanager
def lead_processes(
    processes: int, device: str, follow: Callable[..., None], *arguments: object
) -> Iterator[BatchShare]:
    """Start all processes but this one, and end them when the context is left.

    Args:
        processes: Number of processes, including this one.
        device: Device of this process; on CUDA, the others use the devices after it.
        follow: Importable function that every other process calls as
            follow(share, device, *arguments).
        arguments: Arguments of `follow`.

    Yields:
        This process's share. If it ends early, the other processes fail at their next step.
    """
    if processes == 1:
        yield BatchShare()
        return
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        address = f"file://{directory}/rendezvous"
        for rank in range(1, processes):
            share, place = BatchShare(rank, processes), device_of_rank(device, rank)
            follower = multiprocessing.get_context("spawn").Process(
                target=_follow, args=(share, place, address, follow, arguments)
            )
            follower.start()
            stack.callback(_end, follower)
        stack.enter_context(_process_group(BatchShare(0, processes), device, address))
        yield BatchShare(0, processes)


def device_of_rank(device: str, rank: int) -> str:
    """Return the device of a process, given that of the first.

    >>> device_of_rank("cpu", 1), device_of_rank("cuda", 1), device_of_rank("cuda:2", 1)
    ('cpu', 'cuda:1', 'cuda:3')
    """
    backend, _, first = device.partition(":")
    return backend if backend == "cpu" else f"{backend}:{int(first or 0) + rank}"


def _follow(
    share: BatchShare,
    device: str,
    address: str,
    follow: Callable[..., None],
    arguments: tuple[object, ...],
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the first process handles them, and ends this one
    with _process_group(share, device, address):
        follow(share, device, *arguments)


@contextlib.contextmanager
def _process_group(share: BatchShare, device: str, address: str) -> Iterator[None]:
    backend = "nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(
        backend, init_method=address, rank=share.rank, world_size=share.processes
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _end(follower: BaseProcess) -> None:
    """End a process that has taken its last step, or waits in one that never ends."""
    follower.join(5)
    follower.kill()
    follower.join()
