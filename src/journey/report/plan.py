"""What a run would do: what is cached, what is missing, and what that will cost if it goes as other things went.

How far a run is: what is done, what is made now or queued, what failed and why. Nothing is touched."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from journey.attribution.gradient import Featurize
from journey.engine.costs import SIMILAR, Cost, Rates, estimate_cost, read_rates, recorded_costs
from journey.engine.graph import ancestors, missing
from journey.engine.spec import Spec, cache_key
from journey.engine.store import Store
from journey.engine.workspace import Compute
from journey.launch.jobs import log_path
from journey.pipeline.interfaces import Evaluate, FullData, Train


def show_plan(target: Evaluate, store: Store, compute: Compute) -> None:
    """Print the plan. Costs are those of the stage's artifacts in this store, or else of the rates that were measured, scaled by
    the work there is to do (for training: steps × images × multiply-adds of the network); unknown where there are none.

    Raises: StoreError if the file of the rates is damaged.
    """
    everything = {cache_key(s): s for s in [target, *ancestors(target)]}
    to_make = missing([target], lambda spec: store.find(spec) is not None)
    known, measured = (
        recorded_costs(store),
        read_rates(store.root, target.trajectories.checkpoint.model.label, compute),
    )
    costs = {
        key: estimate_cost(spec, known[spec.stage], measured.of.get(spec.rate_name))
        for key, spec in to_make.items()
    }
    unit = "worker-hours" if compute.device == "cpu" else "GPU-hours"
    table = Table("stage", "artifacts", "cached", "to make", unit, "MiB", caption_justify="left")
    for stage in dict.fromkeys(spec.stage for spec in reversed(everything.values())):
        table.add_row(
            *_row(stage, [key for key, spec in everything.items() if spec.stage == stage], costs)
        )
    table.add_section()
    table.add_row(*_row("total", list(everything), costs))
    table.caption = (
        f"{_amounts(list(to_make.values()))}\n{_sources(store, costs.values(), measured)}"
    )
    Console().print(table)


def _row(name: str, artifacts: list[str], costs: dict[str, Cost]) -> tuple[str, ...]:
    """How many of some artifacts there are, are cached and are to be made, and what the last will cost. costs: of all such"""
    wanted = [costs[key] for key in artifacts if key in costs]
    return (
        name,
        str(len(artifacts)),
        str(len(artifacts) - len(wanted)),
        str(len(wanted)),
        *cells(wanted),
    )


def _amounts(wanted: list[Spec]) -> str:
    """Trainings, and of how many images or queries × draws there will be a gradient."""
    models = [
        spec.subset == FullData()
        for spec in wanted
        if isinstance(spec, Train) and not spec.released
    ]
    gradients = sum(
        spec.num_rows * spec.num_samples for spec in wanted if isinstance(spec, Featurize)
    )
    return f"models: {sum(models)} of all images, {len(models) - sum(models)} retrained; gradients: {gradients:,} images × draws"


def _sources(store: Store, costs: Iterable[Cost], measured: Rates) -> str:
    """Where costs come from."""
    of_rates = (
        f"; of what was not made before, {measured.how}" if any(of.measured for of in costs) else ""
    )
    return f"costs: of what {store.root}/ holds, scaled by work; ≈ scaled more than {SIMILAR:.0f}-fold{of_rates}"


def cells(costs: list[Cost]) -> tuple[str, str]:
    """Hours and MiB of some artifacts together; >: and what is unknown.

    >>> cells([Cost(3600.0, 2**20), Cost(1800.0, None)])
    ('1.5', '> 1.0')
    >>> cells([Cost(36.0, None, rough=True)]), cells([])
    (('≈ 0.01', 'unknown'), ('0', '0'))
    """
    about = "≈ " if any(of.rough for of in costs) else ""
    return _sum([of.seconds for of in costs], 3600, about), _sum([of.size for of in costs], 2**20)


def _sum(values: list[float | None], unit: float, about: str = "") -> str:
    """Of those that are known, in a unit."""
    known = [value for value in values if value is not None]
    if values and not known:
        return "unknown"
    total = sum(known) / unit
    shown = f"{total:.2g}" if total < 1 else f"{total:.1f}" if total < 100 else f"{total:,.0f}"
    return about + "> " * (len(known) < len(values)) + shown


STANDINGS = ("done", "running", "queued", "failed", "not begun")


def show_status(target: Evaluate, store: Store, compute: Compute) -> None:
    """Print how many artifacts of each stage stand where, then each one that runs or failed."""
    standing = standings([target, *ancestors(target)], store, compute.at_work(store))
    by_stage = {
        stage: Counter()
        for stage in dict.fromkeys(spec.stage for spec, _ in reversed(standing.values()))
    }
    for spec, where in standing.values():
        by_stage[spec.stage][where] += 1
    table = Table("stage", *STANDINGS)
    for stage, counts in by_stage.items():
        table.add_row(stage, *(str(counts[where]) for where in STANDINGS))
    table.add_section()
    table.add_row(
        "total", *(str(sum(counts[where] for counts in by_stage.values())) for where in STANDINGS)
    )
    Console().print(table)
    for key, (_, where) in standing.items():
        if where == "running":
            print(f"running: {key}")
        if where == "failed":
            print(
                f"failed: {key}: {last_line(log_path(store.root, key))} (log: {log_path(store.root, key)})"
            )


def standings(
    specs: list[Spec], store: Store, at_work: dict[str, str]
) -> dict[str, tuple[Spec, str]]:
    """Where each artifact stands, by its address. at_work: as a launcher says

    What failed has a log, and nobody who tries it again.
    """
    found = {}
    for spec in specs:
        key = cache_key(spec)
        if store.find(spec) is not None:
            where = "done"
        elif key in at_work:
            where = at_work[key]
        else:
            where = "failed" if log_path(store.root, key).exists() else "not begun"
        found[key] = spec, where
    return found


def last_line(log: Path) -> str:
    """Of what was written."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was written"
