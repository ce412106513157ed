"""Keep the images of a dataset. Payload: train/, held_out/ and, if any are planted, planted/, each images.npy, labels.npy
and texts.json; metrics.jsonl.
"""

from pathlib import Path

from journey import data
from journey.artifacts import resume
from journey.artifacts.specs import Images
from journey.artifacts.workspace import Workspace
from journey.data import planting
from journey.tracking import track


def make(spec: Images, partial: Path, workspace: Workspace) -> None:
    """Raises: ValueError if the dataset no longer holds what the address says; ConfigError if an image cannot be decoded."""
    # Load.
    parts = planting.parts(spec.dataset)
    found = data.content_hash(*parts.values())
    if found != spec.content:
        raise ValueError(f"the images of {spec.label} have changed: sha256 {found[:12]}, expected {spec.content[:12]}")

    # Begin, or continue where an interrupted run stopped.
    done = resume.resumed(partial) or dict.fromkeys(parts, 0)

    # Keep, some images at a time.
    total = sum(map(len, parts.values()))
    with track(spec, partial, workspace, resume_step=sum(done.values())) as log:
        for name, images in parts.items():
            for count in data.write(images, partial / name, done[name]):
                done[name] = count
                log(sum(done.values()), of=total)
                resume.keep(partial, done)
