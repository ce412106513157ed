"""Write the report of a run: result.json, lds.md, the pictures, and the tables on the terminal."""

import json
import sys
from enum import Enum
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

from journey import config, data, experiment
from journey.report import figures, tables
from journey.stages import Workspace, get
from journey.stages.sample import estimates
from journey.store import replace_text, write_json
from journey.tracking import wandb_run


def write(run: config.Config, workspace: Workspace, directory: Path) -> None:
    """Everything a run is reported by, in one directory."""
    evaluation = get(experiment.evaluate(run), workspace)
    result = {"experiment": run.name, **json.loads((evaluation.path / "result.json").read_text())}
    pictures = {"lds_by_step.png": figures.lds_by_step(result)} if len(result["lds"]) <= len(figures.COLOURS) else {}
    if not pictures:
        pictures["lds_by_method.png"] = figures.lds_by_method(result)
    if axes := _axes(run):
        pictures["ablations.png"] = figures.ablations(result, next(iter(run.method)), axes)
    if shown := _per_step(run):
        pictures["journeys.png"] = _journeys(run, workspace, shown, result)

    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "result.json", result)
    replace_text(directory / "lds.md", tables.markdown(result))
    for name, figure in pictures.items():
        figure.savefig(directory / name, dpi=160)
        plt.close(figure)

    console = Console() if sys.stdout.isatty() else Console(width=200)  # a file has no width to keep to
    console.print(tables.lds_table(result))
    if result["paired"]:
        console.print(tables.paired_table(result))
    _to_wandb(result, directory, list(pictures), workspace)
    console.print(f"{directory}/: result.json, lds.md, {', '.join(pictures)}", highlight=False, soft_wrap=True)


def _axes(run: config.Config) -> dict[str, list[tuple[str, str]]]:
    """Every axis that the first method was varied along: (value, name), in rising order where the values are numbers."""
    base = next(iter(run.method.values()))
    points: dict[str, dict] = {}
    for axis, variant in run.vary.variants(base):
        if axis == "at":
            continue
        if axis != "damping":  # of which the base chooses among several
            points.setdefault(axis, {_value(base, axis): base.name})
        same = (name for name, method in run.judged.items() if config.same_but_for_its_name(variant, method))
        points.setdefault(axis, {})[_value(variant, axis)] = next(same)
    return {axis: [(str(value), name) for value, name in sorted(of.items())] for axis, of in points.items()}


def _value(method: config.Method, axis: str) -> float | str:
    value = getattr(method, axis)
    return value.value if isinstance(value, Enum) else value[0] if isinstance(value, list) else value


def _per_step(run: config.Config) -> str | None:
    """The first method that scores steps."""
    names = [n for n, m in run.method.items() if isinstance(m, config.GradientMethod) and m.at is config.At.step]
    return names[0] if names else None


def _journeys(run: config.Config, workspace: Workspace, method: str, result: dict) -> plt.Figure:
    """Proponents and opponents under the hyper-parameter that was chosen most often."""
    journeys = get(experiment.journeys(run), workspace)
    images, _ = data.load(run.dataset)
    candidates = config.candidates(run.method[method])
    chosen = [{k: v for k, v in c.items() if k != "readout"} for c in result["lds"][method]["chosen"]["step"]]
    best = max(candidates, key=chosen.count)
    scores = get(experiment.score(run, run.method[method]), workspace).array("scores.npy")
    guided = figures.Guided(
        steps=run.sampling.steps,
        x0_hat=np.stack([queries.x0.numpy() for queries in estimates(journeys, tuple(run.sampling.steps))]),
        train=images.images,
        scores=scores[candidates.index(best)],
        labels=[images.class_names[label] for label in images.labels],
    )
    setting = "".join(f", {name} {value:g}" for name, value in best.items())
    return figures.journeys(guided, f"{run.name}: what guided each step ({method}{setting})")


def _to_wandb(result: dict, directory: Path, pictures: list[str], workspace: Workspace) -> None:
    with wandb_run(workspace, name=f"{result['experiment']}-report", job_type="report", settings={}) as tracked:
        if tracked is None:
            return
        import wandb

        rows = [[t, *(lds["step"]["mean"][i] for lds in result["lds"].values())] for i, t in enumerate(result["steps"])]
        tracked.log({"lds_by_step": wandb.Table(["step", *result["lds"]], rows)})
        tracked.log({Path(name).stem: wandb.Image(str(directory / name)) for name in pictures})
        tracked.summary.update({f"lds/{n}/trajectory": lds["trajectory"]["mean"] for n, lds in result["lds"].items()})
