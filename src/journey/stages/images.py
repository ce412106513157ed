"""Keep the images of a dataset. Payload: train/ and held_out/, each images.npy, labels.npy and texts.json."""

from pathlib import Path

from journey import data
from journey.artifacts.specs import Images
from journey.artifacts.workspace import Workspace


def make(spec: Images, partial: Path, workspace: Workspace) -> None:
    """Raises: ValueError if the dataset no longer holds what the address says."""
    train, held_out = spec.dataset.load()
    found = data.content_hash(train, held_out)
    if found != spec.content:
        raise ValueError(f"the images of {spec.label} have changed: sha256 {found[:12]}, expected {spec.content[:12]}")
    data.write(train, partial / "train")
    data.write(held_out, partial / "held_out")
