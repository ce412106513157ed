"""What pictures, the page and Python show of a run beside what its evaluation found.

What a result cost, from the manifests of what it is made from.

Write the report of a run: result.json, texts, pictures, and the tables on the terminal."""

import contextlib
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from rich.console import Console

from journey.config.run import RunConfig
from journey.data.images import train_images
from journey.diffusion.trajectories import estimate_pictures as decoded
from journey.diffusion.trajectories import noisy_pictures
from journey.engine.files import replace_text, write_json
from journey.engine.graph import ancestors
from journey.engine.manifest import differences
from journey.engine.provenance import git_state, package_versions
from journey.engine.spec import Spec, cache_key, describe
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.pipeline.interfaces import (
    Autoencoder,
    Evaluate,
    Evaluation,
    Experiment,
    FullData,
    Images,
    Method,
    Sample,
    Score,
    Train,
)
from journey.pipeline.settings import Target
from journey.report import figures, tables
from journey.report.page import (
    PAGE,
    PagePicture,
    PageTrajectories,
    page_contents,
    page_html,
    rank_images,
)


def with_run_info(run: RunConfig, found: dict) -> dict:
    """What was found, with what tables and figures need to know of the run."""
    variants = [name for name in run.all_methods if name not in run.method]
    about = {"experiment": run.name, "dataset": run.dataset.label, "model": run.model.label}
    return {**about, "variants": variants, "axes": variant_axes(run), **found}


def shown_candidate(method: Method, name: str, evaluation: Evaluation, result: dict | None) -> int:
    """Which hyper-parameter a method is shown with, along the first axis of its scores: what the evaluation chose or was told,
    or else the middle one.

    result: None while there is none.
    """
    known = method.candidates()
    chosen = evaluation.chosen(result, name) if result is not None else None
    return known.index(chosen) if chosen else len(known) // 2


def candidate_text(method: Method, index: int) -> str:
    """In words; "" where there is nothing to choose.

    >>> from journey.attribution.methods.gradient import GradientMethod
    >>> setting(GradientMethod(damping=[0.1, 1.0]), 1)
    'damping 1'
    """
    return ", ".join(f"{key} {value:g}" for key, value in method.candidates()[index].items())


def variant_axes(run: RunConfig) -> dict[str, list[tuple[str, str]]]:
    """Every axis that the first method was varied along: (value, name), in rising order where the values are numbers."""
    base, method = next(iter(run.method.items()))
    points: dict[str, dict] = {}
    for axis, variant in run.vary.variants(base, method).values():
        if axis == "at":
            continue
        if axis != "damping":  # of which the base chooses among several
            points.setdefault(axis, {_value(method, axis): base})
        same = next(name for name, other in run.all_methods.items() if other == variant)
        points.setdefault(axis, {})[_value(variant, axis)] = same
    return {
        axis: [(str(value), name) for value, name in sorted(of.items())]
        for axis, of in points.items()
    }


def _value(method: Method, axis: str) -> float | str:
    value = vars(method)[axis]
    return (
        value.value if isinstance(value, Enum) else value[0] if isinstance(value, list) else value
    )


def method_cost(score: Score, store: Store) -> dict[str, float]:
    """What a method's scores cost beside the models and journeys they explain; shared features count for every method.

    gradients: backward passes, one for each example and draw.
    """
    total = {"seconds": 0.0, "gradients": 0, "bytes": 0}
    for made in [score, *ancestors(score)]:
        if _explained(made) or (cost := store.cost(made)) is None:
            continue
        total["seconds"] += cost["seconds"]
        total["bytes"] += cost["bytes"]
        total["gradients"] += cost["facts"].get("gradients", 0)
    return total | {"seconds": round(total["seconds"], 1)}


def _explained(made: Spec) -> bool:
    return isinstance(made, Sample | Images) or (
        isinstance(made, Train) and made.subset == FullData()
    )


def costs_by_stage(evaluation: Evaluate, store: Store) -> dict[str, dict[str, float]]:
    """Worker-seconds and bytes, by stage, of all that a result is made from and the store knows of."""
    seconds, size = defaultdict(float), defaultdict(int)
    for made in ancestors(evaluation):
        if cost := store.cost(made):
            stage = made.stage
            seconds[stage] += cost["seconds"]
            size[stage] += cost["bytes"]
    return {"seconds": _with_total(seconds), "bytes": _with_total(size)}


def _with_total(of: dict[str, float]) -> dict[str, float]:
    return {stage: round(value, 1) for stage, value in {**of, "total": sum(of.values())}.items()}


PICTURE = "trajectories.png"


def write_report(
    run: RunConfig, experiment: Experiment, workspace: Workspace, directory: Path
) -> dict:
    """Make everything a run is reported by, in one directory that is replaced as a whole; returns the result.

    Every picture is there for a screen, .png, and for paper, .pdf.

    The picture of the journeys comes as soon as there is what it shows, with a λ from the middle of those that are chosen
    among, and again at the end, with the one that was chosen.
    """
    target = experiment.evaluation(run.evaluation, run.all_methods)
    guide = _per_step(run)
    with _replacing(directory) as partial:
        _make(run, experiment, workspace, target, guide, partial / PICTURE)
        result = _result(run, target, workspace)
        pictures, texts = run.evaluation.figures(result), run.evaluation.texts(result)
        embedded = [
            PagePicture(partial / name, _save(figure, partial / name))
            for name, figure in pictures.items()
        ]
        if guide:
            pictures[PICTURE] = _journeys(run, experiment, workspace, guide, result)
            _save(pictures[PICTURE], partial / PICTURE)
        for name, text in {
            **texts,
            PAGE: _page(run, experiment, workspace, result, embedded),
        }.items():
            replace_text(partial / name, text)
        write_json(partial / "result.json", result)
        _say_what_is_replaced(directory, result)
    _show(run, result)
    print(f"{directory}/: {', '.join([PAGE, 'result.json', *texts, *pictures])}", flush=True)
    _to_tracker(run, result, directory, list(pictures), workspace)
    return result


def _make(
    run: RunConfig,
    experiment: Experiment,
    workspace: Workspace,
    target: Evaluate,
    guide: str | None,
    first: Path,
) -> None:
    """Make what is judged, and the first picture as soon as there are scores of the method that guides it."""
    asked = [experiment.scores(run.method[guide])] if guide else []
    waiting = {cache_key(spec) for spec in asked if workspace.store.find(spec) is None}
    for spec in workspace.compute.make([*asked, target], workspace):
        waiting.discard(cache_key(spec))
        if guide and not waiting and not first.exists() and spec is not target:
            _save(_journeys(run, experiment, workspace, guide, None), first)
            print(f"{first}: what guided each step", flush=True)


def _result(run: RunConfig, target: Evaluate, workspace: Workspace) -> dict:
    """What was found, and what made it: settings, commit, addresses, costs."""
    found = json.loads((get(target, workspace).path / "result.json").read_text())
    settings = {
        f.name: describe(getattr(run, f.name))
        for f in fields(run)
        if f.name not in ("artifacts", "reports", "task")
    }
    return {
        **with_run_info(run, found),
        **_autoencoder(target, workspace),
        "cost": {
            name: method_cost(score, workspace.store) for name, score in target.scores.items()
        },
        **costs_by_stage(target, workspace.store),
        "settings": settings,
        "addresses": _addresses(target),
        "commit": git_state(),
        "versions": package_versions(),
    }


def _autoencoder(target: Evaluate, workspace: Workspace) -> dict[str, object]:
    """How well an autoencoder of ours gives images back, where there is one."""
    costs_of = [
        workspace.store.cost(spec) for spec in ancestors(target) if isinstance(spec, Autoencoder)
    ]
    return {"autoencoder": costs_of[0]["facts"]} if any(costs_of) else {}


def _addresses(target: Evaluate) -> dict[str, object]:
    checkpoints = [
        spec for spec in ancestors(target) if isinstance(spec, Train) and spec.subset == FullData()
    ]
    return {
        "evaluation": cache_key(target),
        "images": cache_key(target.trajectories.checkpoint.images),
        "journeys": cache_key(target.trajectories),
        "checkpoints": sorted(map(cache_key, checkpoints)),
        "scores": {name: cache_key(score) for name, score in target.scores.items()},
    }


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
        print(
            f"{directory}: replaces a report of other settings: {'; '.join(changed[:5])}",
            flush=True,
        )


def _save(figure: Figure, path: Path) -> str:
    """For a screen and for paper; returns what stands over it."""
    for form in (path, path.with_suffix(".pdf")):
        figure.savefig(form, dpi=160)
    plt.close(figure)
    return figure.get_suptitle()


def _per_step(run: RunConfig) -> str | None:
    """The first method that scores steps."""
    num_steps = len(run.sampling.steps)
    names = [
        name
        for name, m in run.method.items()
        if m.target is Target.step and m.num_scores(num_steps) == num_steps
    ]
    return names[0] if names else None


def _journeys(
    run: RunConfig, experiment: Experiment, workspace: Workspace, name: str, result: dict | None
) -> Figure:
    """Proponents and opponents by one method. result: None while there is none"""
    best = shown_candidate(run.method[name], name, run.evaluation, result)
    images = train_images(experiment.images, workspace)
    scores = get(experiment.scores(run.method[name]), workspace).array("scores.npy")
    guided = figures.AttributedTrajectories(
        steps=run.sampling.steps,
        x0_hat=decoded(experiment.trajectories, experiment.steps, workspace),
        train=images.images,
        scores=scores[best],
        labels=[images.describe(i) for i in range(len(images))],
        ids=images.ids,
        queries=experiment.trajectories.prompts,
    )
    said = ", ".join(part for part in (name, candidate_text(run.method[name], best)) if part)
    return figures.trajectory_figure(
        guided,
        f"{run.name}: what guided each step ({said})",
        figures.distinct_queries(guided.x0_hat[-1]),
    )


def _page(
    run: RunConfig,
    experiment: Experiment,
    workspace: Workspace,
    result: dict,
    pictures: list[PagePicture],
) -> str:
    """All journeys, and what every method that was asked for ranks first and last along them."""
    of = experiment.trajectories
    x_t, x0_hat = (seen(of, experiment.steps, workspace) for seen in (noisy_pictures, decoded))
    images = train_images(experiment.images, workspace)
    ranked = {}
    for name, method in run.method.items():
        best = shown_candidate(method, name, run.evaluation, result)
        scores = get(experiment.scores(method), workspace).array("scores.npy")
        ranked[name] = rank_images(scores[best], candidate_text(method, best))
    trajectories = PageTrajectories(experiment.steps, x_t, x0_hat, of.prompts)
    contents = page_contents(trajectories, ranked, images, run.evaluation.curves(result))
    about = f"{len(images)} training images of {result['dataset']}, model {result['model']}, {of.num_queries} queries."
    return page_html(run.name, about, contents, pictures)


def _show(run: RunConfig, result: dict) -> None:
    console = (
        Console() if sys.stdout.isatty() else Console(width=200)
    )  # a file has no width to keep to
    if quality := result.get("autoencoder", {}).get("psnr_held_out"):
        console.print(f"autoencoder: {quality:.1f} dB PSNR on held-out images")
    for table in run.evaluation.tables(result) or tables.row_tables(result["rows"], run.name):
        console.print(table)


def _to_tracker(
    run: RunConfig, result: dict, directory: Path, pictures: list[str], workspace: Workspace
) -> None:
    name = f"{run.name}-report"
    with workspace.tracking.watch(name, workspace.group, "report", result["settings"]) as watcher:
        if watcher is None:
            return
        headline = run.evaluation.headline(result)
        values = {
            f"{row['quantity']}/{row['method']}/{row['target']}": row["value"] for row in headline
        }
        files = {f"pictures/{Path(picture).stem}": directory / picture for picture in pictures}
        watcher({"tables/rows": result["rows"], **values, **files, "page": directory / PAGE})
