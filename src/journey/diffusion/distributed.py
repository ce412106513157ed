"""One model trained by several processes of this machine: each takes its part of every step's batch, and all take the same step.

A step's batch, timesteps and noise are those of a single process, so that the number of processes changes rounding alone, and a
training can be gone on with by another number of them.
"""

import contextlib
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from journey.engine.checks import require


@dataclass(frozen=True)
class BatchShare:
    """Which part of every batch is a process's own: each `processes`-th example, beginning with number `rank`."""

    rank: int = 0
    processes: int = 1

    @property
    def part(self) -> slice:
        return slice(self.rank, None, self.processes)


def refuse_dropout(network: nn.Module, share: BatchShare) -> None:
    """Raises: ConfigError if several processes, each with its own random numbers, were to drop what a single one would not."""
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules())
    require(
        share.processes == 1 or not drops,
        "compute.processes",
        share.processes,
        "1 with a network that has dropout",
    )


def step_gradient(losses: Tensor, parameters: Sequence[Tensor], share: BatchShare) -> Tensor | None:
    """Put into `parameters` the gradient of the mean loss of a step's batch, and return that mean; None if the batch is empty.

    losses: of the examples that are this process's own, [b]
    """
    if share.processes > 1:
        return _shared_gradient(losses, parameters)
    if not len(losses):
        return None
    loss = losses.mean()
    loss.backward()
    return loss.detach()


def _shared_gradient(losses: Tensor, parameters: Sequence[Tensor]) -> Tensor | None:
    """Sums over all processes, divided by how many examples all of them have."""
    if len(losses):
        losses.sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    sums = torch.stack([losses.detach().sum(), losses.new_tensor(float(len(losses)))])
    total = torch.cat([sums, *(gradient.flatten() for gradient in gradients)])  # [2 + d]
    distributed.all_reduce(total)
    count = total[1]
    if count == 0:
        return None
    for parameter, gradient in zip(
        parameters, (total[2:] / count).split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = gradient.view_as(parameter)
    return total[0] / count


@contextlib.contextmanager
def lead_processes(
    processes: int, device: str, follow: Callable[..., None], *arguments: object
) -> Iterator[BatchShare]:
    """Lead so many processes; the others each call `follow(share, device, *arguments)`, an importable function, in a new process.

    device: of the leader; of the others, on CUDA, the next ones. Followers whose leader ends early fail at their next step.
    """
    if processes == 1:
        yield BatchShare()
        return
    with tempfile.TemporaryDirectory() as meeting, contextlib.ExitStack() as stack:
        place = f"file://{meeting}/place"
        context = multiprocessing.get_context("spawn")
        for rank in range(1, processes):
            words = (
                BatchShare(rank, processes),
                device_of_rank(device, rank),
                place,
                follow,
                arguments,
            )
            follower = context.Process(target=_follow, args=words)
            follower.start()
            stack.callback(_end, follower)
        stack.enter_context(_joined(BatchShare(0, processes), device, place))
        yield BatchShare(0, processes)


def device_of_rank(device: str, rank: int) -> str:
    """Of a follower.

    >>> device_of_rank("cpu", 1), device_of_rank("cuda", 1), device_of_rank("cuda:2", 1)
    ('cpu', 'cuda:1', 'cuda:3')
    """
    kind, _, first = device.partition(":")
    return kind if kind == "cpu" else f"{kind}:{int(first or 0) + rank}"


def _follow(
    share: BatchShare, device: str, place: str, follow: Callable[..., None], arguments: tuple
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the leader's affair, on whose end this one ends
    with _joined(share, device, place):
        follow(share, device, *arguments)


@contextlib.contextmanager
def _joined(share: BatchShare, device: str, place: str) -> Iterator[None]:
    backend = "nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(
        backend, init_method=place, rank=share.rank, world_size=share.processes
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _end(follower: multiprocessing.process.BaseProcess) -> None:
    """It has done its last step, or is in one that never ends."""
    follower.join(5)
    follower.kill()
    follower.join()
