"""Show all images to an encoder. Payload: train.npy and held_out.npy, float32 [N, E]."""

from pathlib import Path

import numpy as np
import torch

from journey import data
from journey.artifacts.specs import Embedded
from journey.artifacts.workspace import Workspace, get

TOGETHER = 1024  # images that are pixels in memory at once


def make(spec: Embedded, partial: Path, workspace: Workspace) -> None:
    """Raises: ValueError if an embedding is not finite."""
    kept = get(spec.images, workspace).path
    encode = spec.encoder.load()
    for part in ("train", "held_out"):
        images = data.read(kept / part).images
        blocks = [images[first : first + TOGETHER] for first in range(0, len(images), TOGETHER)]
        embedded = torch.cat([encode(data.as_pixels(block)) for block in blocks]).numpy()
        if not np.isfinite(embedded).all():
            raise ValueError(f"embeddings of {spec.label} are not finite")
        np.save(partial / f"{part}.npy", embedded)
