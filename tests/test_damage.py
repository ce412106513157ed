"""What a resumed run trusts is damaged: every stage notices, and ends as an undisturbed run.

tests/engine/test_resume.py flips every bit of a small state; here are the stages that save them.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import miniatures
import pytest
from conftest import journey_trak, small_run
from test_kill import CODED, text_run, use_several_blocks

from journey.attribution.adjoint import Adjoint
from journey.attribution.magic import Magic
from journey.attribution.unlearning import Unlearning
from journey.data import images as image_stage
from journey.data.embedded import Digits
from journey.diffusion import train
from journey.engine import resume
from journey.engine.graph import parents
from journey.engine.spec import Spec, cache_key
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.experiment import load_experiment
from journey.pipeline import images
from journey.pipeline.settings import Target, Training

DIGITS = small_run(
    training=Training(num_steps=4, batch_size=16, warmup_steps=1), dataset=Digits(num_train=30)
)


def spec_of(name: str, store: Store) -> Spec:
    """Return the artifact of a stage."""
    digits = load_experiment(DIGITS, store)
    match name:
        case "images":
            return digits.images
        case "training":
            return digits.checkpoint(1)
        case "featurization":
            return digits.scores(journey_trak()).inputs.train[0][0]
        case "kronecker":
            return digits.scores(journey_trak(**CODED)).inputs.train[0][0]
        case "encoding":
            return load_experiment(text_run(store.root), store).latents
        case "unlearning":
            method = Unlearning(num_samples=2, rise=[0.1, 0.2], target=Target.final_sample)
            return digits.scores(method).inputs.increases[0]
        case "adjoint":
            return digits.scores(Adjoint(num_samples=2)).inputs.queries[0]
        case "magic":
            return digits.scores(Magic(num_samples=2)).inputs.scores[0][0]


@dataclass
class Stage:
    spec: Spec
    root: Path
    undisturbed: dict[str, dict]  # checksums of the payload

    @property
    def partial(self) -> Path:
        return self.root / f"{cache_key(self.spec)}.partial"

    def compute(self) -> dict[str, dict]:
        return get(self.spec, workspace_of(self.root)).manifest["checksums"]


def workspace_of(root: Path) -> Workspace:
    return Workspace(Store(root), DIGITS.compute, DIGITS.tracking, "test")


def stop_after(num_saves: int, patch: pytest.MonkeyPatch) -> None:
    """Interrupt the stage once a state is saved, before files of earlier ones are removed."""
    write, saves = resume._write_states, []

    def stopping(partial, states):
        write(partial, states)
        saves.append(states)
        if len(saves) == num_saves:
            raise KeyboardInterrupt

    patch.setattr(resume, "_write_states", stopping)


@pytest.fixture(
    scope="module",
    params=[
        "images", "training", "featurization", "kronecker", "encoding", "unlearning", "adjoint",
        "magic",
    ],
)  # fmt: skip
def stage(request, tmp_path_factory) -> Iterator[Stage]:
    """A stage that was interrupted after it had saved three states."""
    root = tmp_path_factory.mktemp("stage") / "store"
    miniatures.coco(root.parent / "coco")
    with pytest.MonkeyPatch.context() as patch:
        use_several_blocks(request.param, patch.setattr)
        patch.setattr(images, "WRITE_BYTES", 64 * 600)
        patch.setattr(train, "LOG_INTERVAL", 1)
        workspace = workspace_of(root)
        spec = spec_of(request.param, workspace.store)
        for parent in parents(spec):
            get(parent, workspace)
        undisturbed = get(spec, workspace).manifest["checksums"]
        shutil.rmtree(root / cache_key(spec))
        with pytest.MonkeyPatch.context() as stop:
            stop_after(3, stop)
            with pytest.raises(KeyboardInterrupt):
                get(spec, workspace_of(root))
        yield Stage(spec, root, undisturbed)


def flip(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << byte % 8
    path.write_bytes(content)


def damages(partial: Path) -> Iterator[tuple[str, int | None]]:
    """Yield files and bytes of them that a resumed run trusts; None: the file is missing."""
    states = json.loads((partial / resume.STATE).read_bytes())["states"]
    ranges = [tuple(added) for added in states[0]["added"] + states[-1]["added"]]
    ranges += [(name, 0, (partial / name).stat().st_size) for name in states[-1]["files"]]
    for i, name in enumerate(dict.fromkeys(name for name, _, _ in ranges)):
        first = next(start + 9 for other, start, _ in ranges if other == name)
        last = max(stop - 1 for other, _, stop in ranges if other == name)
        yield name, last if i % 2 else first
    yield ranges[-1][0], None


def test_a_resumed_run_notices_damage_and_ends_as_an_undisturbed_one(stage, tmp_path, capfd):
    backup = tmp_path / "partial"
    shutil.copytree(stage.partial, backup)
    assert stage.compute() == stage.undisturbed
    assert "damaged" not in capfd.readouterr().err
    for name, place in damages(backup):
        shutil.rmtree(stage.root / cache_key(stage.spec))
        shutil.copytree(backup, stage.partial)
        path = stage.partial / name
        path.unlink() if place is None else flip(path, place)
        assert stage.compute() == stage.undisturbed, (name, place)
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1, (name, place)
        assert "the state of an interrupted run is damaged" in lines[0]
        assert name in lines[0]


def test_the_stages_that_resume_are_all_tested():
    source = Path(resume.__file__).parents[1]
    users = set()
    for path in source.rglob("*.py"):
        if path.parent.name != "engine" and "load_state(partial)" in path.read_text():
            users.add(str(path.relative_to(source)))
    assert users == {
        "attribution/adjoint/stage.py", "attribution/features.py", "attribution/magic/stage.py",
        "attribution/unlearning/stage.py", "data/images.py", "diffusion/autoencoder.py",
        "diffusion/train.py",
    }  # fmt: skip
    assert image_stage.make_images
