"""Weights of training patches in the optimal local denoiser of x_t (Kamb and Ganguli 2024); no model."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from journey.artifacts.specs import Score
from journey.artifacts.workspace import Workspace
from journey.config.checks import require
from journey.config.contracts import Method
from journey.data import as_pixels, train_images


@dataclass
class NonparametricScore(Method):
    kind: ClassVar[str] = "nonparametric"
    in_units_of_output: ClassVar[bool] = False
    needs_pixels: ClassVar[bool] = True
    patch_size: list[int] = field(default_factory=lambda: [3, 5, 7])  # odd: candidates

    def check(self, where: str) -> None:
        sizes = self.patch_size
        require(len(sizes) > 0 and len(set(sizes)) == len(sizes), f"{where}.patch_size", sizes, "a non-empty list, each once")
        odd = all(0 < size < 1000 and size % 2 == 1 for size in sizes)
        require(odd, f"{where}.patch_size", sizes, "odd sizes below 1000")

    def candidates(self) -> list[dict[str, float]]:
        return [{"patch_size": value} for value in self.patch_size]

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        import torch

        from journey.attribution import patches
        from journey.diffusion.journeys import at_steps

        model = spec.journeys.checkpoint.model
        alpha_bar = model.schedule(torch.device("cpu")).alpha_bar[list(spec.steps)]
        x_t = at_steps("x_t", spec.journeys, spec.steps, workspace)
        train = as_pixels(train_images(spec.images, workspace).images)
        out[:] = patches.score(train, x_t, alpha_bar, self.patch_size)
        return {}
