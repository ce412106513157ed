"""Cosine similarity of the pixels of the query's x̂0_t and of a training image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from journey.artifacts.specs import Sample, Score
from journey.artifacts.workspace import Workspace
from journey.config.checks import require, require_boxes, require_inside
from journey.config.contracts import Method, Model
from journey.config.groups import neutral
from journey.data import ImageSet, as_pixels, train_images

BATCH = 1024  # images in memory at once


@dataclass
class Pixel(Method):
    kind: ClassVar[str] = "pixel"
    in_units_of_output: ClassVar[bool] = False
    region: list[int] = neutral([])  # whose pixels: a box, or one for each query; none: all

    def check(self, where: str) -> None:
        if self.region:
            require_boxes(f"{where}.region", self.region)

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        require(model.pixels or not self.region, f"{where}.region", self.region, f"[] with model={model.kind}, of latents")

    def check_data(self, where: str, journeys: Sample, images: ImageSet) -> None:
        if self.region:
            require_inside(f"{where}.region", self.region, *images.images.shape[2:], journeys.num_queries)

    def within(self, region: Sequence[int]) -> "Pixel":
        return replace(self, region=list(region))

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        from journey.attribution import cosine
        from journey.diffusion.pictures import pictures
        from journey.diffusion.regions import boxes, inside

        queries, train = pictures(spec.journeys, spec.steps, workspace), train_images(spec.images, workspace).images
        for first in range(0, len(train), BATCH):
            some = slice(first, first + BATCH)
            pixels = as_pixels(train[some]).numpy()
            for own, region in boxes(self.region, spec.journeys.num_queries):
                out[:, :, own, some] = cosine.score(inside(pixels, region), inside(queries[:, own], region))
        return {}
