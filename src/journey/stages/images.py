"""Keep the images of a dataset. Payload: train/ and held_out/, each images.npy, labels.npy and texts.json; metrics.jsonl."""

from pathlib import Path

from journey import data
from journey.artifacts import resume
from journey.artifacts.specs import Images
from journey.artifacts.workspace import Workspace
from journey.tracking import track


def make(spec: Images, partial: Path, workspace: Workspace) -> None:
    """Raises: ValueError if the dataset no longer holds what the address says; ConfigError if an image cannot be decoded."""
    # Load.
    train, held_out = spec.dataset.load()
    found = data.content_hash(train, held_out)
    if found != spec.content:
        raise ValueError(f"the images of {spec.label} have changed: sha256 {found[:12]}, expected {spec.content[:12]}")

    # Begin, or continue where an interrupted run stopped.
    done = resume.resumed(partial) or {"train": 0, "held_out": 0}

    # Keep, some images at a time.
    total = len(train) + len(held_out)
    with track(spec, partial, workspace, resume_step=sum(done.values())) as log:
        for name, images in (("train", train), ("held_out", held_out)):
            for count in data.write(images, partial / name, done[name]):
                done[name] = count
                log(sum(done.values()), of=total)
                resume.keep(partial, done)
