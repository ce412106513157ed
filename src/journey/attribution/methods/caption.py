"""Cosine similarity of the query's prompt and of a training image's captions: of the mean state of their tokens."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from journey.artifacts.specs import Score
from journey.artifacts.workspace import Workspace
from journey.config.contracts import Method

BATCH = 64  # images whose captions are encoded at once, where they are not kept


@dataclass
class Caption(Method):
    kind: ClassVar[str] = "caption"
    in_units_of_output: ClassVar[bool] = False
    needs_text: ClassVar[bool] = True

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        import torch

        from journey.attribution import cosine
        from journey.diffusion import network
        from journey.diffusion.journeys import conditions, train_examples

        context = train_examples(spec.journeys.checkpoint, workspace).context.to(network.device_of(workspace.compute))
        parts = [context[first : first + BATCH].mean((1, 2)).cpu() for first in range(0, len(context), BATCH)]
        captions = torch.cat(parts)  # [N, E]
        prompts = conditions(spec.journeys, workspace).mean((1, 2))  # [Q, E]
        out[:] = cosine.score(captions.numpy(), prompts[None].numpy())  # the same at every step
        return {}
