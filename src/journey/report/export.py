"""Write what is needed to judge scores, and nothing that was only needed to get there: a pack, which is a store."""

import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from journey.attribution.external import score_axes
from journey.config.run import RunConfig
from journey.data.images import train_images
from journey.engine.files import replace_text, write_json
from journey.engine.graph import ancestors, specs_in
from journey.engine.provenance import git_state
from journey.engine.spec import Spec, cache_key
from journey.engine.store import COSTS, Store
from journey.engine.workspace import Workspace, get
from journey.experiment import images_record, images_record_path
from journey.pipeline import subsets
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

CARD = """# {name}: everything to judge attribution scores with

Made by `journey {words}` (commit {commit}):
{num_train} training images ({dataset}), {num_queries} queries at {num_steps} steps, {num_outputs} retrained models.
{count} artifacts of {size:.1f} MB; the manifest.json of each has its settings, parents and checksums.

| what | where |
|---|---|
| training images: images.npy (uint8 [N, C, H, W]), labels.npy, texts.json (ids, class names, captions) | `{images}/train/` |
| journeys: x_t.npy and x0_hat.npy (float32 [step, query, …], pixels in −1 … 1), final.npy | `{journeys}/` |
| models of all training images, as diffusers folders (`from_pretrained`) | {models} |
| what retrained models do: outputs.npy (float64 [2 halves of the draws, steps + destination, query]) | `outputs/` |
| which images each of them saw: bool [N], by the name of its outputs | `masks.npz` |
| scores of methods: scores.npy (float32 [candidate, step, query, train], positive = proponent) | `scores/` |
| the names of the axes of scores | `axes.json` |

To judge scores of your own beside these, from this directory:

    np.savez("mine.npz", scores=tau, **json.load(open("axes.json")))  # tau [step, query, train]
    journey {words} artifacts=. 'method=[{methods},external]' method.external.path=mine.npz

Licence of the images: {licence}. The rest is under the licence of `journey`.
"""


def write_bundle(
    run: RunConfig, experiment: Experiment, workspace: Workspace, path: Path, words: str
) -> None:
    """Pack a judged experiment as `path`, a .tar.gz that can be unpacked anywhere and named as `artifacts=`.

    words: the overrides that compose the experiment.
    """
    target, store = experiment.evaluation(run.evaluation, run.all_methods), workspace.store
    everything = {cache_key(spec): spec for spec in [target, *ancestors(target)]}
    judges = {cache_key(spec) for spec in specs_in(target.inputs)}
    packed = {name: spec for name, spec in everything.items() if _is_needed(spec) or name in judges}
    costs = {
        name: cost
        for name, spec in everything.items()
        if name not in packed and (cost := store.cost(spec))
    }

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        beside = Path(scratch) / "pack"
        memory = images_record_path(run.dataset, beside)
        memory.parent.mkdir(parents=True)
        write_json(memory, images_record(experiment.images, None))
        write_json(
            beside / "axes.json",
            score_axes(experiment.trajectories, train_images(experiment.images, workspace)),
        )
        write_json(beside / COSTS, costs)
        np.savez_compressed(beside / "masks.npz", **_masks(packed, experiment.images, workspace))
        replace_text(beside / "README.md", _card(run, target, packed, store, words))
        with tarfile.open(Path(scratch) / "archive", "w:gz") as archive:
            archive.add(beside, path.name.removesuffix(".tar.gz"))
            for name, spec in sorted(packed.items()):
                archive.add(
                    store.find(spec).path,
                    f"{path.name.removesuffix('.tar.gz')}/{name}",
                    filter=_payload,
                )
        os.replace(Path(scratch) / "archive", path)
    print(f"{path}: {len(packed)} artifacts, {path.stat().st_size / 1e6:.1f} MB", flush=True)


def _is_needed(spec: Spec) -> bool:
    """Whether judging other scores takes it; retrained models are not needed once they are measured."""
    return isinstance(spec, Images | Sample | Score | Evaluate) or (
        isinstance(spec, Train) and spec.subset == FullData()
    )


def _masks(packed: dict[str, Spec], of: Images, workspace: Workspace) -> dict[str, np.ndarray]:
    """Which training images each measured model saw, by the name of its outputs. bool [N]"""
    images, masks = train_images(of, workspace), {}
    for name, spec in packed.items():
        if isinstance(spec, Measure):
            rows = subsets.subset_rows(
                spec.checkpoint.subset,
                images,
                lambda score: get(score, workspace).array("scores.npy"),
            )
            masks[name.split("/")[1]] = np.bincount(rows, minlength=len(images)) > 0
    return masks


def _payload(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """All but what one machine remembers, and who somebody is there."""
    if Path(entry.name).name.startswith("verified-"):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _card(
    run: RunConfig, target: Evaluate, packed: dict[str, Spec], store: Store, words: str
) -> str:
    models = [name for name, spec in sorted(packed.items()) if isinstance(spec, Train)]
    return CARD.format(
        name=run.name,
        words=words,
        commit=(git_state() or {"commit": "unknown"})["commit"],
        dataset=run.dataset.label,
        num_train=target.trajectories.checkpoint.images.num_train,
        num_queries=target.trajectories.num_queries,
        num_steps=len(target.steps),
        num_outputs=sum(isinstance(spec, Measure) for spec in packed.values()),
        images=cache_key(target.trajectories.checkpoint.images),
        trajectories=cache_key(target.trajectories),
        models=", ".join(f"`{name}/`" for name in models),
        count=len(packed),
        size=sum(store.find(spec).manifest["bytes"] for spec in packed.values()) / 1e6,
        methods=",".join(run.method),
        licence=run.dataset.licence,
    )
