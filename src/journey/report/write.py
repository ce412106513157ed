"""Write the report of a run: result.json, texts, pictures, and the tables on the terminal."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import fields
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
from journey.config.groups import At
from journey.config.settings import Config
from journey.data import train_images
from journey.diffusion.pictures import noisy
from journey.diffusion.pictures import pictures as decoded
from journey.report import costs, figures, shown, tables
from journey.report.page import travel
from journey.report.page import write as page

PICTURE = "journeys.png"


def write(run: Config, made_from: Recipes, workspace: Workspace, directory: Path) -> dict:
    """Make everything a run is reported by, in one directory that is replaced as a whole; returns the result.

    Every picture is there for a screen, .png, and for paper, .pdf.

    The picture of the journeys comes as soon as there is what it shows, with a λ from the middle of those that are chosen
    among, and again at the end, with the one that was chosen.
    """
    target = made_from.evaluate(run.evaluation, run.judged)
    guide = _per_step(run)
    with _replacing(directory) as partial:
        _make(run, made_from, workspace, target, guide, partial / PICTURE)
        result = _result(run, target, workspace)
        pictures, texts = run.evaluation.figures(result), run.evaluation.texts(result)
        embedded = [page.Picture(partial / name, _save(figure, partial / name)) for name, figure in pictures.items()]
        if guide:
            pictures[PICTURE] = _journeys(run, made_from, workspace, guide, result)
            _save(pictures[PICTURE], partial / PICTURE)
        for name, text in {**texts, page.PAGE: _page(run, made_from, workspace, result, embedded)}.items():
            replace_text(partial / name, text)
        write_json(partial / "result.json", result)
        _say_what_is_replaced(directory, result)
    _show(run, result)
    print(f"{directory}/: {', '.join([page.PAGE, 'result.json', *texts, *pictures])}", flush=True)
    _to_tracker(run, result, directory, list(pictures), workspace)
    return result


def _make(run: Config, made_from: Recipes, workspace: Workspace, target: Evaluate, guide: str | None, first: Path) -> None:
    """Make what is judged, and the first picture as soon as there are scores of the method that guides it."""
    asked = [made_from.score(run.method[guide])] if guide else []
    waiting = {address(spec) for spec in asked if workspace.store.find(spec) is None}
    for spec in workspace.compute.make([*asked, target], workspace):
        waiting.discard(address(spec))
        if guide and not waiting and not first.exists() and spec is not target:
            _save(_journeys(run, made_from, workspace, guide, None), first)
            print(f"{first}: what guided each step", flush=True)


def _result(run: Config, target: Evaluate, workspace: Workspace) -> dict:
    """What was found, and what made it: settings, commit, addresses, costs."""
    found = json.loads((get(target, workspace).path / "result.json").read_text())
    settings = {f.name: describe(getattr(run, f.name)) for f in fields(run) if f.name not in ("artifacts", "reports", "task")}
    return {
        **shown.told(run, found),
        **_autoencoder(target, workspace),
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


def _save(figure: Figure, path: Path) -> str:
    """For a screen and for paper; returns what stands over it."""
    for form in (path, path.with_suffix(".pdf")):
        figure.savefig(form, dpi=160)
    plt.close(figure)
    return figure.get_suptitle()


# --------------------------------------------------------------------------------------------------- pictures


def _per_step(run: Config) -> str | None:
    """The first method that scores steps."""
    num_steps = len(run.sampling.steps)
    names = [name for name, m in run.method.items() if m.at is At.step and m.num_scores(num_steps) == num_steps]
    return names[0] if names else None


def _journeys(run: Config, made_from: Recipes, workspace: Workspace, name: str, result: dict | None) -> Figure:
    """Proponents and opponents by one method. result: None while there is none"""
    best = shown.candidate(run.method[name], name, run.evaluation, result)
    images = train_images(made_from.images, workspace)
    scores = get(made_from.score(run.method[name]), workspace).array("scores.npy")
    guided = figures.Guided(
        steps=run.sampling.steps,
        x0_hat=decoded(made_from.journeys, made_from.steps, workspace),
        train=images.images,
        scores=scores[best],
        labels=[images.describe(i) for i in range(len(images))],
        ids=images.ids,
        queries=made_from.journeys.prompts,
    )
    said = ", ".join(part for part in (name, shown.setting(run.method[name], best)) if part)
    return figures.journeys(guided, f"{run.name}: what guided each step ({said})", figures.differing(guided.x0_hat[-1]))


def _page(run: Config, made_from: Recipes, workspace: Workspace, result: dict, pictures: list[page.Picture]) -> str:
    """All journeys, and what every method that was asked for ranks first and last along them."""
    of = made_from.journeys
    x_t, x0_hat = (seen(of, made_from.steps, workspace) for seen in (noisy, decoded))
    images = train_images(made_from.images, workspace)
    ranked = {}
    for name, method in run.method.items():
        best = shown.candidate(method, name, run.evaluation, result)
        scores = get(made_from.score(method), workspace).array("scores.npy")
        ranked[name] = travel.ranked(scores[best], shown.setting(method, best))
    journeys = travel.Journeys(made_from.steps, x_t, x0_hat, of.prompts)
    contents = travel.contents(journeys, ranked, images, run.evaluation.curves(result))
    about = f"{len(images)} training images of {result['dataset']}, model {result['model']}, {of.num_queries} queries."
    return page.html(run.name, about, contents, pictures)


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
        files = {f"pictures/{Path(picture).stem}": directory / picture for picture in pictures}
        watcher({"tables/rows": result["rows"], **values, **files, "page": directory / page.PAGE})
