"""What a diffusion model is trained on: clean tensors with an optional context."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """x0: clean examples, float32 [N, …]; context: what conditions each, [N, L, E], or None."""

    x0: Tensor
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x0.shape[1:])

    def to(self, device: torch.device) -> "Examples":
        return Examples(self.x0.to(device), None if self.context is None else self.context.to(device))

    def __getitem__(self, index: Tensor | slice | int) -> "Examples":
        return Examples(self.x0[index], None if self.context is None else self.context[index])
