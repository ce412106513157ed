"""Write what is needed to judge scores, and nothing that was only needed to get there: a pack, which is a store."""

import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from journey import experiment
from journey.artifacts.files import replace_text, write_json
from journey.artifacts.graph import address, ancestors, specs_in
from journey.artifacts.keep import All
from journey.artifacts.provenance import git_state
from journey.artifacts.recipes import Recipes
from journey.artifacts.specs import Evaluate, Images, Measure, Sample, Score, Spec, Train
from journey.artifacts.store import COSTS, Store
from journey.artifacts.workspace import Workspace, get
from journey.attribution.methods.external import axes
from journey.config.settings import Config
from journey.data import subsets, train_images

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


def write(run: Config, made_from: Recipes, workspace: Workspace, path: Path, words: str) -> None:
    """Pack a judged experiment as `path`, a .tar.gz that can be unpacked anywhere and named as `artifacts=`.

    words: the overrides that compose the experiment.
    """
    target, store = made_from.evaluate(run.evaluation, run.judged), workspace.store
    everything = {address(spec): spec for spec in [target, *ancestors(target)]}
    judges = {address(spec) for spec in specs_in(target.needs)}
    packed = {name: spec for name, spec in everything.items() if _is_needed(spec) or name in judges}
    costs = {name: cost for name, spec in everything.items() if name not in packed and (cost := store.cost(spec))}

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        beside = Path(scratch) / "pack"
        memory = experiment.memory_of(run.dataset, beside)
        memory.parent.mkdir(parents=True)
        write_json(memory, experiment.memory_contents(made_from.images, None))
        write_json(beside / "axes.json", axes(made_from.journeys, train_images(made_from.images, workspace)))
        write_json(beside / COSTS, costs)
        np.savez_compressed(beside / "masks.npz", **_masks(packed, made_from.images, workspace))
        replace_text(beside / "README.md", _card(run, target, packed, store, words))
        with tarfile.open(Path(scratch) / "archive", "w:gz") as archive:
            archive.add(beside, path.name.removesuffix(".tar.gz"))
            for name, spec in sorted(packed.items()):
                archive.add(store.find(spec).path, f"{path.name.removesuffix('.tar.gz')}/{name}", filter=_payload)
        os.replace(Path(scratch) / "archive", path)
    print(f"{path}: {len(packed)} artifacts, {path.stat().st_size / 1e6:.1f} MB", flush=True)


def _is_needed(spec: Spec) -> bool:
    """Whether judging other scores takes it; retrained models are not needed once they are measured."""
    return isinstance(spec, Images | Sample | Score | Evaluate) or (isinstance(spec, Train) and spec.keep == All())


def _masks(packed: dict[str, Spec], of: Images, workspace: Workspace) -> dict[str, np.ndarray]:
    """Which training images each measured model saw, by the name of its outputs. bool [N]"""
    images, masks = train_images(of, workspace), {}
    for name, spec in packed.items():
        if isinstance(spec, Measure):
            rows = subsets.rows(spec.checkpoint.keep, images, lambda score: get(score, workspace).array("scores.npy"))
            masks[name.split("/")[1]] = np.bincount(rows, minlength=len(images)) > 0
    return masks


def _payload(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """All but what one machine remembers, and who somebody is there."""
    if Path(entry.name).name.startswith("verified-"):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _card(run: Config, target: Evaluate, packed: dict[str, Spec], store: Store, words: str) -> str:
    models = [name for name, spec in sorted(packed.items()) if isinstance(spec, Train)]
    return CARD.format(
        name=run.name,
        words=words,
        commit=(git_state() or {"commit": "unknown"})["commit"],
        dataset=run.dataset.label,
        num_train=target.journeys.checkpoint.images.num_train,
        num_queries=target.journeys.num_queries,
        num_steps=len(target.steps),
        num_outputs=sum(isinstance(spec, Measure) for spec in packed.values()),
        images=address(target.journeys.checkpoint.images),
        journeys=address(target.journeys),
        models=", ".join(f"`{name}/`" for name in models),
        count=len(packed),
        size=sum(store.find(spec).manifest["bytes"] for spec in packed.values()) / 1e6,
        methods=",".join(run.method),
        licence=run.dataset.licence,
    )
