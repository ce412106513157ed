"""Write the report of a run: result.json, lds_by_step.png, journeys.png, and the tables on the terminal."""

import json
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

from journey import config, data, specs
from journey.report import figures, tables
from journey.stages import Workspace, get
from journey.stages.sample import estimates
from journey.store import write_json
from journey.tracking import wandb_run


def write(run: config.Config, workspace: Workspace, directory: Path) -> None:
    """Everything a run is reported by, in one directory."""
    evaluation = get(specs.evaluate(run), workspace)
    result = {"experiment": run.name, **json.loads((evaluation.path / "result.json").read_text())}
    pictures = {"lds_by_step.png": figures.lds_by_step(result)}
    if shown := _per_step(run):
        pictures["journeys.png"] = _journeys(run, workspace, shown, result)

    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "result.json", result)
    for name, figure in pictures.items():
        figure.savefig(directory / name, dpi=160)
        plt.close(figure)

    console = Console()
    console.print(tables.lds_table(result))
    if result["paired"]:
        console.print(tables.paired_table(result))
    _to_wandb(result, directory, list(pictures), workspace)
    console.print(f"{directory}/: result.json, {', '.join(pictures)}", highlight=False, soft_wrap=True)


def _per_step(run: config.Config) -> str | None:
    """The first method that scores steps."""
    names = [name for name, m in run.method.items() if isinstance(m, config.TRAK) and m.at is config.At.step]
    return names[0] if names else None


def _journeys(run: config.Config, workspace: Workspace, method: str, result: dict) -> plt.Figure:
    """Proponents and opponents under the damping that was chosen most often."""
    journeys = get(specs.journeys(run), workspace)
    images, _ = data.load(run.dataset)
    damping = Counter(result["lds"][method]["damping"]["step"]).most_common(1)[0][0]
    scores = get(specs.score(run, run.method[method]), workspace).array("scores.npy")
    guided = figures.Guided(
        steps=run.sampling.steps,
        x0_hat=np.stack([queries.x0.numpy() for queries in estimates(journeys, tuple(run.sampling.steps))]),
        train=images.images,
        scores=scores[run.method[method].damping.index(damping)],
        labels=[images.class_names[label] for label in images.labels],
    )
    return figures.journeys(guided, f"{run.name}: what guided each step ({method}, damping {damping:g})")


def _to_wandb(result: dict, directory: Path, pictures: list[str], workspace: Workspace) -> None:
    with wandb_run(workspace, name=f"{result['experiment']}-report", job_type="report", settings={}) as tracked:
        if tracked is None:
            return
        import wandb

        rows = [[t, *(lds["step"]["mean"][i] for lds in result["lds"].values())] for i, t in enumerate(result["steps"])]
        tracked.log({"lds_by_step": wandb.Table(["step", *result["lds"]], rows)})
        tracked.log({Path(name).stem: wandb.Image(str(directory / name)) for name in pictures})
        tracked.summary.update({f"lds/{n}/trajectory": lds["trajectory"]["mean"] for n, lds in result["lds"].items()})
