"""Export a bundle: a store with all that the evaluation of scores needs, as one archive."""

import shlex
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from journey.attribution.external import score_axes
from journey.config.run import RunConfig
from journey.data.images import train_images
from journey.engine.files import replace_text, write_json
from journey.engine.graph import ancestors, specs_in
from journey.engine.provenance import git_state
from journey.engine.spec import cache_key
from journey.engine.store import COSTS, MANIFEST, Artifact
from journey.engine.workspace import Workspace, get
from journey.experiment import write_record
from journey.pipeline import subsets
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import (
    Evaluate,
    Experiment,
    FullData,
    Images,
    Measure,
    Sample,
    Score,
    Train,
)
from journey.report.directory import bundle_files, bundle_path

CARD = """# {name}: a bundle for the evaluation of attribution scores

Written by `journey {words}` (commit {commit}):
{num_train} training images ({dataset}), {num_queries} queries at {num_steps} steps, {num_outputs} retrained models.
{count} artifacts of {size:.1f} MB; the manifest.json of each has its settings, parents and checksums.

| what | where |
|---|---|
| training images: images.npy (uint8 [N, C, H, W]), labels.npy, texts.json (ids, class names, captions) | `{images}/train/` |
| trajectories: x_t.npy and x0_hat.npy (float32 [step, query, …], pixels in −1 … 1), final.npy | `{trajectories}/` |
| models trained on all images, as diffusers folders (`from_pretrained(…, low_cpu_mem_usage=False)`) | {models} |
| outputs of retrained models: outputs.npy (float64 [2 halves of the noise samples, steps + final sample, query]) | `outputs/` |
| the images in the training subset of each: bool [N], by the name of its outputs | `masks.npz` |
| scores of methods: scores.npy (float32 [candidate, step, query, train], positive = proponent) | `scores/` |
| the names of the axes of scores | `axes.json` |

To evaluate your own scores beside these, from this directory:

    np.savez("mine.npz", scores=tau, **json.load(open("axes.json")))  # tau [step, query, train]
    journey {shared} artifacts=. 'method=[{methods}]' method.external.path=mine.npz

License of the images: {license}. The rest has the license of `journey`.
"""  # noqa: E501 - a Markdown table cannot be wrapped


@dataclass
class _Contents:
    """What a bundle has, by cache key."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)
    costs: dict[str, dict] = field(default_factory=dict)  # of artifacts that are left out
    masks: dict[str, np.ndarray] = field(default_factory=dict)  # training subsets, bool [N]
    models: list[str] = field(default_factory=list)  # paths, for the card
    size: int = 0  # bytes of the artifacts


def write_bundle(
    run: RunConfig, experiment: Experiment, workspace: Workspace, directory: Path, words: str
) -> None:
    """Write an evaluated experiment as a .tar.gz; unpacked anywhere, it serves as `artifacts=`.

    It has the images, trajectories, checkpoints, scores, results, and the evaluation's own inputs;
    of retrained models it has the outputs only. Costs of what it leaves out are recorded.

    Args:
        run: The run.
        experiment: Its experiment, whose result is computed.
        workspace: Where its artifacts are.
        directory: The directory of the report. The archive is beside it.
        words: The overrides that compose the experiment.
    """
    # 1. Choose the artifacts, and describe them.
    target = experiment.evaluation(run.evaluation, run.all_methods)
    images = train_images(experiment.images, workspace)
    contents = _contents(target, images, workspace)
    card = CARD.format(
        name=run.name,
        words=words,
        shared=_without_methods(words),
        commit=(git_state() or {"commit": "unknown"})["commit"],
        dataset=run.dataset.label,
        num_train=len(images),
        num_queries=target.trajectories.num_queries,
        num_steps=len(target.steps),
        num_outputs=len(contents.masks),
        images=cache_key(target.trajectories.checkpoint.images),
        trajectories=cache_key(target.trajectories),
        models=", ".join(sorted(contents.models)),
        count=len(contents.artifacts),
        size=contents.size / 1e6,
        methods=",".join(dict.fromkeys([*run.method, "external"])),
        license=run.dataset.licence,
    )

    # 2. Write them, with files about the whole, as one archive.
    path = bundle_path(directory)
    folder = path.name.removesuffix(".tar.gz")
    with (
        tempfile.TemporaryDirectory() as scratch,
        bundle_files(run, directory).replaced() as new_file,
    ):
        extras = Path(scratch) / "extras"
        write_record(experiment.images, extras, None)
        write_json(extras / "axes.json", score_axes(experiment.trajectories, images))
        write_json(extras / COSTS, contents.costs)
        np.savez_compressed(extras / "masks.npz", allow_pickle=False, **contents.masks)
        replace_text(extras / "README.md", card)
        with tarfile.open(new_file(path.name), "w:gz", dereference=True) as file:
            file.add(extras, folder, filter=_anonymous)
            for key, artifact in sorted(contents.artifacts.items()):
                for name in (MANIFEST, *artifact.manifest["checksums"]):  # no files of others
                    file.add(artifact.path / name, f"{folder}/{key}/{name}", filter=_anonymous)
    megabytes = path.stat().st_size / 1e6
    print(f"{path}: {len(contents.artifacts)} artifacts, {megabytes:.1f} MB", flush=True)


def _contents(target: Evaluate, images: ImageSet, workspace: Workspace) -> _Contents:
    """Return the artifacts that the evaluation of scores needs, and the costs of the others."""
    contents = _Contents()
    inputs = {cache_key(spec) for spec in specs_in(target.inputs)}
    for spec in [target, *ancestors(target)]:
        key = cache_key(spec)
        checkpoint = isinstance(spec, Train) and spec.subset == FullData()
        needed = checkpoint or isinstance(spec, Images | Sample | Score | Evaluate)
        if not (needed or key in inputs):
            if cost := workspace.store.cost(spec):
                contents.costs[key] = cost
            continue
        contents.artifacts[key] = artifact = get(spec, workspace)
        contents.size += artifact.manifest["bytes"]
        if isinstance(spec, Train):
            contents.models.append(f"`{key}/`")
        if isinstance(spec, Measure):
            rows = subsets.subset_rows(
                spec.checkpoint.subset,
                images,
                lambda score: get(score, workspace).array("scores.npy"),
            )
            contents.masks[key.split("/")[1]] = np.bincount(rows, minlength=len(images)) > 0
    return contents


def _without_methods(words: str) -> str:
    """Return overrides without those that choose the methods or set those of `external`.

    >>> _without_methods("experiment=digits 'method=[journey]' method.journey.damping=[1]")
    "experiment=digits 'method.journey.damping=[1]'"
    """
    left_out = ("method=", "method.external.path=")
    return shlex.join(word for word in shlex.split(words) if not word.startswith(left_out))


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return an entry without its owner."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
