"""Export a bundle: a store with all that the evaluation of scores needs, as one archive.

Where enough random subsets are evaluated, the outputs of half of them are in a second archive.
"""

import shlex
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from journey.attribution.external import score_axes
from journey.config.run import RunConfig
from journey.data.images import train_images
from journey.engine.files import checksum, replace_text, write_json
from journey.engine.graph import ancestors, specs_in
from journey.engine.provenance import __version__, git_state
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
from journey.report.directory import CROISSANT, HELD_OUT, bundle_files, bundle_path

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
{held_out}
License of the images: {license}. The rest has the license of `journey`.
"""  # noqa: E501 - a Markdown table cannot be wrapped

SUBMIT = """
`benchmark.json` has the protocol of a submission:

    journey submit {bundle} mine.npz card.yaml
"""
HELD_OUT_CARD = """
The outputs of {num_held_out} of the {num_subsets} training subsets are in {file}
(SHA-256 {sha256}). Choose settings without it: add
`retraining.num_subsets={num_public}` to the command above. With it, unpacked into this directory,
the command evaluates on all subsets.
"""
BENCHMARK = "benchmark.json"
CROISSANT_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "includes": "cr:includes",
    "FileObject": "cr:FileObject",
    "FileSet": "cr:FileSet",
}
LEAST_SUBSETS = 8  # of an evaluation, and so of each half


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
    of retrained models it has the outputs only. Costs of what it leaves out are recorded. The
    outputs of the second half of many random subsets are in an archive of their own, which unpacks
    into the same folder.

    Args:
        run: The run.
        experiment: Its experiment, whose result is computed.
        workspace: Where its artifacts are.
        directory: The directory of the report. The archive is beside it.
        words: The overrides that compose the experiment.
    """
    # 1. Choose the artifacts, and which of them are held out.
    target = experiment.evaluation(run.evaluation, run.all_methods)
    images = train_images(experiment.images, workspace)
    contents = _contents(target, images, workspace)
    benchmark = run.evaluation.benchmark(target, workspace)
    held_out: list[list[str]] = []
    if benchmark is not None:
        outputs = cast("list[list[str]]", benchmark["outputs"])
        num_public = len(outputs) // 2
        if not experiment.bank and num_public >= LEAST_SUBSETS:
            benchmark["outputs"], held_out = outputs[:num_public], outputs[num_public:]
    keys_held_out = {f"{Measure.folder}/{name}" for names in held_out for name in names}

    # 2. Write the archives. The bundle has the checksum of what is held out.
    path = bundle_path(directory)
    folder = path.name.removesuffix(".tar.gz")
    with (
        tempfile.TemporaryDirectory() as scratch,
        bundle_files(run, directory).replaced() as new_file,
    ):
        extras, texts, files = Path(scratch) / "extras", "", {}
        write_record(experiment.images, extras, None)
        write_json(extras / "axes.json", score_axes(experiment.trajectories, images))
        write_json(extras / COSTS, contents.costs)
        np.savez_compressed(extras / "masks.npz", allow_pickle=False, **contents.masks)
        if benchmark is not None:
            texts = SUBMIT.format(bundle=path.name)
            benchmark = {"name": run.name, "dataset": run.dataset.label, **benchmark}
        if benchmark is not None and held_out:
            name = bundle_path(directory, HELD_OUT).name
            files[name] = new_file(name)
            with tarfile.open(files[name], "w:gz", dereference=True) as file:
                _add(file, folder, contents, keys_held_out)
            sha256 = checksum(files[name])
            benchmark["held_out"] = {"file": name, "sha256": sha256, "outputs": held_out}
            texts += HELD_OUT_CARD.format(
                num_held_out=len(held_out),
                num_subsets=num_public + len(held_out),
                num_public=num_public,
                file=name,
                sha256=sha256,
            )
        if benchmark is not None:
            write_json(extras / BENCHMARK, benchmark)
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
            held_out=texts,
        )
        replace_text(extras / "README.md", card)
        files[path.name] = new_file(path.name)
        with tarfile.open(files[path.name], "w:gz", dereference=True) as file:
            file.add(extras, folder, filter=_anonymous)
            _add(file, folder, contents, contents.artifacts.keys() - keys_held_out)
        metadata = _croissant(run, folder, files)
        write_json(new_file(bundle_path(directory, CROISSANT).name), metadata)
    megabytes = path.stat().st_size / 1e6
    print(f"{path}: {len(contents.artifacts)} artifacts, {megabytes:.1f} MB", flush=True)
    for name in files.keys() - {path.name}:
        print(f"{path.with_name(name)}: the outputs of {len(held_out)} subsets, held out")


def _add(file: tarfile.TarFile, folder: str, contents: _Contents, keys: Iterable[str]) -> None:
    """Add artifacts to an archive, without files of others in their directories."""
    for key in sorted(keys):
        artifact = contents.artifacts[key]
        for name in (MANIFEST, *artifact.manifest["checksums"]):
            file.add(artifact.path / name, f"{folder}/{key}/{name}", filter=_anonymous)


def _croissant(run: RunConfig, folder: str, files: dict[str, Path]) -> dict[str, object]:
    """Return metadata of the archives in the format Croissant 1.0 (mlcommons.org/croissant)."""
    distribution: list[dict[str, object]] = []
    for name, path in files.items():
        archive = {"@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name}
        size = {"contentSize": f"{path.stat().st_size} B", "sha256": checksum(path)}
        distribution.append({**archive, **size, "encodingFormat": "application/gzip"})
    for part, pattern, text in (
        ("images", "images/*/train/*", "training images, their labels and ids"),
        ("trajectories", "trajectories/*/*", "x_t and x0_hat of every query at every step"),
        ("outputs", "outputs/*/*", "losses of the queries under retrained models"),
        ("masks", "masks.npz", "training subsets of the retrained models"),
        ("scores", "scores/*/*", "attribution scores of methods"),
    ):
        archives = [{"@id": name} for name in files]
        contained = archives if part == "outputs" else archives[-1:]
        described = {"name": part, "description": text, "includes": f"{folder}/{pattern}"}
        file_set = {"@type": "cr:FileSet", "@id": part, "containedIn": contained}
        distribution.append({**file_set, **described, "encodingFormat": "application/octet-stream"})
    return {
        "@context": CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"journey-{run.name}",
        "description": f"A benchmark of training-data attribution at every step of the sampling "
        f"trajectories of diffusion models trained on {run.dataset.label}.",
        "license": f"images: {run.dataset.licence}; everything else: MIT",
        "version": __version__,
        "distribution": distribution,
    }


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
