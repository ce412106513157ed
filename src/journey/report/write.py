"""Write the report of a run: result.json, texts, pictures, and the tables on the terminal."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from rich.console import Console

from journey.artifacts.files import replace_text, write_json
from journey.artifacts.graph import address, ancestors, describe
from journey.artifacts.keep import All
from journey.artifacts.manifest import differences
from journey.artifacts.provenance import git_state, versions
from journey.artifacts.recipes import Recipes
from journey.artifacts.specs import Autoencoder, Evaluate, Train
from journey.artifacts.workspace import Workspace, get
from journey.config.contracts import Method
from journey.config.groups import At
from journey.config.settings import Config
from journey.data import train_images
from journey.diffusion.pictures import pictures as decoded
from journey.report import costs, figures, tables

PICTURE = "journeys.png"


def write(run: Config, made_from: Recipes, workspace: Workspace, directory: Path) -> dict:
    """Make everything a run is reported by, in one directory that is replaced as a whole; returns the result.

    The picture of the journeys comes as soon as there is what it shows, with a λ from the middle of those that are chosen
    among, and again at the end, with the one that was chosen.
    """
    target = made_from.evaluate(run.evaluation, run.judged)
    shown = _per_step(run)
    first = [made_from.score(run.method[shown])] if shown else []
    with _replacing(directory) as partial:
        waiting = {address(spec) for spec in first if workspace.store.find(spec) is None}
        for spec in workspace.compute.make([*first, target], workspace):
            waiting.discard(address(spec))
            if shown and not waiting and not (partial / PICTURE).exists() and spec is not target:
                _save(_journeys(run, made_from, workspace, shown, None), partial / PICTURE)
                print(f"{partial / PICTURE}: what guided each step", flush=True)
        result = _result(run, target, workspace)
        write_json(partial / "result.json", result)
        texts = run.evaluation.texts(result)
        for name, text in texts.items():
            replace_text(partial / name, text)
        pictures = run.evaluation.figures(result)
        if shown:
            chosen = run.evaluation.chosen(result, shown)
            pictures[PICTURE] = _journeys(run, made_from, workspace, shown, chosen)
        for name, figure in pictures.items():
            _save(figure, partial / name)
        _say_what_is_replaced(directory, result)
    _show(run, result)
    print(f"{directory}/: {', '.join(['result.json', *texts, *pictures])}", flush=True)
    _to_tracker(run, result, directory, list(pictures), workspace)
    return result


def _result(run: Config, target: Evaluate, workspace: Workspace) -> dict:
    """What was found, and what made it: settings, commit, addresses, costs."""
    found = json.loads((get(target, workspace).path / "result.json").read_text())
    settings = {f.name: describe(getattr(run, f.name)) for f in fields(run) if f.name not in ("artifacts", "reports", "task")}
    return {
        "experiment": run.name,
        "dataset": run.dataset.label,
        "model": run.model.label,
        "variants": [name for name in run.judged if name not in run.method],
        "axes": _axes(run),
        **_autoencoder(target, workspace),
        **found,
        "cost": {name: costs.of_method(score, workspace.store) for name, score in target.scores.items()},
        **costs.by_stage(target, workspace.store),
        "settings": settings,
        "addresses": _addresses(target),
        "commit": git_state(),
        "versions": versions(),
    }


def _autoencoder(target: Evaluate, workspace: Workspace) -> dict[str, object]:
    """How well an autoencoder of ours gives images back, where there is one."""
    costs_of = [workspace.store.cost(spec) for spec in ancestors(target) if isinstance(spec, Autoencoder)]
    return {"autoencoder": costs_of[0]["facts"]} if any(costs_of) else {}


def _addresses(target: Evaluate) -> dict[str, object]:
    checkpoints = [spec for spec in ancestors(target) if isinstance(spec, Train) and spec.keep == All()]
    return {
        "evaluation": address(target),
        "images": address(target.journeys.checkpoint.images),
        "journeys": address(target.journeys),
        "checkpoints": sorted(map(address, checkpoints)),
        "scores": {name: address(score) for name, score in target.scores.items()},
    }


# ------------------------------------------------------------------------------------------------- the directory


@contextlib.contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """A directory that takes the place of another when all went well, so that no report is made of two runs."""
    partial = directory.with_name(f"{directory.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
        while True:
            with contextlib.suppress(FileNotFoundError):
                os.rename(directory, old)
            shutil.rmtree(old, ignore_errors=True)
            with contextlib.suppress(OSError):  # another run put its report there in this moment
                os.rename(partial, directory)
                break
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _say_what_is_replaced(directory: Path, result: dict) -> None:
    try:
        before = json.loads((directory / "result.json").read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    changed = differences(before, result["settings"])
    if changed:
        print(f"{directory}: replaces a report of other settings: {'; '.join(changed[:5])}", flush=True)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=160)
    plt.close(figure)


# --------------------------------------------------------------------------------------------------- pictures


def _axes(run: Config) -> dict[str, list[tuple[str, str]]]:
    """Every axis that the first method was varied along: (value, name), in rising order where the values are numbers."""
    base, method = next(iter(run.method.items()))
    points: dict[str, dict] = {}
    for axis, variant in run.vary.variants(base, method).values():
        if axis == "at":
            continue
        if axis != "damping":  # of which the base chooses among several
            points.setdefault(axis, {_value(method, axis): base})
        same = next(name for name, other in run.judged.items() if other == variant)
        points.setdefault(axis, {})[_value(variant, axis)] = same
    return {axis: [(str(value), name) for value, name in sorted(of.items())] for axis, of in points.items()}


def _value(method: Method, axis: str) -> float | str:
    value = vars(method)[axis]
    return value.value if isinstance(value, Enum) else value[0] if isinstance(value, list) else value


def _per_step(run: Config) -> str | None:
    """The first method that scores steps."""
    num_steps = len(run.sampling.steps)
    names = [name for name, m in run.method.items() if m.at is At.step and m.num_scores(num_steps) == num_steps]
    return names[0] if names else None


def _journeys(run: Config, made_from: Recipes, workspace: Workspace, name: str, chosen: dict | None) -> Figure:
    """Proponents and opponents under one of the method's hyper-parameters."""
    candidates = run.method[name].candidates()
    best = chosen or candidates[len(candidates) // 2]
    images = train_images(made_from.images, workspace)
    scores = get(made_from.score(run.method[name]), workspace).array("scores.npy")
    guided = figures.Guided(
        steps=run.sampling.steps,
        x0_hat=decoded(made_from.journeys, made_from.steps, workspace),
        train=images.images,
        scores=scores[candidates.index(best)],
        labels=[images.describe(i) for i in range(len(images))],
        ids=images.ids,
        queries=made_from.journeys.prompts,
    )
    setting = "".join(f", {key} {value:g}" for key, value in best.items())
    return figures.journeys(guided, f"{run.name}: what guided each step ({name}{setting})")


# --------------------------------------------------------------------------------------- terminal and trackers


def _show(run: Config, result: dict) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=200)  # a file has no width to keep to
    if quality := result.get("autoencoder", {}).get("psnr_held_out"):
        console.print(f"autoencoder: {quality:.1f} dB PSNR on held-out images")
    for table in run.evaluation.tables(result) or tables.of_rows(result["rows"], run.name):
        console.print(table)


def _to_tracker(run: Config, result: dict, directory: Path, pictures: list[str], workspace: Workspace) -> None:
    name = f"{run.name}-report"
    with workspace.tracking.watch(name, workspace.group, "report", result["settings"]) as watcher:
        if watcher is None:
            return
        headline = run.evaluation.headline(result)
        values = {f"{row['quantity']}/{row['method']}/{row['target']}": row["value"] for row in headline}
        shown = {f"pictures/{Path(picture).stem}": directory / picture for picture in pictures}
        watcher({"tables/rows": result["rows"], **values, **shown})
