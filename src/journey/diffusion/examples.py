"""What a diffusion model is trained on: clean tensors, as they are or with a deviation, and what conditions them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """What all of N examples have, or none has.

    x0         clean examples, or of latents the mean, float32 [N, …]
    deviation  standard deviation of latents, of which every draw is another sample, [N, …]
    context    what conditions each, one or more of it (captions), [N, C, L, E]
    """

    x0: Tensor
    deviation: Tensor | None = None
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x0.shape[1:])

    def to(self, device: torch.device) -> "Examples":
        return self._each(lambda tensor: tensor.to(device))

    def __getitem__(self, index: Tensor | slice | int) -> "Examples":
        return self._each(lambda tensor: tensor[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Examples":
        return Examples(**{name: None if tensor is None else change(tensor) for name, tensor in vars(self).items()})
