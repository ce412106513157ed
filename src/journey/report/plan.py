"""What a run would do: what is cached, what is missing, and what that will cost if it goes as other things went."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from journey.artifacts import rates
from journey.artifacts.estimates import ALIKE, Cost, cost, made_before
from journey.artifacts.graph import address, ancestors, missing
from journey.artifacts.keep import All
from journey.artifacts.rates import Rates
from journey.artifacts.specs import Evaluate, Featurize, Spec, Train
from journey.artifacts.store import Store
from journey.config.contracts import Compute


def show(target: Evaluate, store: Store, compute: Compute) -> None:
    """Print the plan. Costs are those of the stage's artifacts in this store, or else of the rates that were measured, scaled by
    the work there is to do (for training: steps × images × multiply-adds of the network); unknown where there are none.

    Raises: StoreError if the file of the rates is damaged.
    """
    everything = {address(s): s for s in [target, *ancestors(target)]}
    to_make = missing([target], lambda spec: store.find(spec) is not None)
    known, measured = made_before(store), rates.read(store.root, target.journeys.checkpoint.model, compute)
    costs = {key: cost(spec, known[spec.stage_name], measured.of.get(rates.name(spec))) for key, spec in to_make.items()}
    unit = "worker-hours" if compute.device == "cpu" else "GPU-hours"
    table = Table("stage", "artifacts", "cached", "to make", unit, "MiB", caption_justify="left")
    for stage in dict.fromkeys(spec.stage_name for spec in reversed(everything.values())):
        table.add_row(*_row(stage, [key for key, spec in everything.items() if spec.stage_name == stage], costs))
    table.add_section()
    table.add_row(*_row("total", list(everything), costs))
    table.caption = f"{_amounts(list(to_make.values()))}\n{_sources(store, costs.values(), measured)}"
    Console().print(table)


def _row(name: str, artifacts: list[str], costs: dict[str, Cost]) -> tuple[str, ...]:
    """How many of some artifacts there are, are cached and are to be made, and what the last will cost. costs: of all such"""
    wanted = [costs[key] for key in artifacts if key in costs]
    return name, str(len(artifacts)), str(len(artifacts) - len(wanted)), str(len(wanted)), *cells(wanted)


def _amounts(wanted: list[Spec]) -> str:
    """Trainings, and of how many images or queries × draws there will be a gradient."""
    models = [spec.keep == All() for spec in wanted if isinstance(spec, Train) and not spec.released]
    gradients = sum(spec.num_rows * spec.num_draws for spec in wanted if isinstance(spec, Featurize))
    return f"models: {sum(models)} of all images, {len(models) - sum(models)} retrained; gradients: {gradients:,} images × draws"


def _sources(store: Store, costs: Iterable[Cost], measured: Rates) -> str:
    """Where costs come from."""
    of_rates = f"; of what was not made before, {measured.how}" if any(of.measured for of in costs) else ""
    return f"costs: of what {store.root}/ holds, scaled by work; ≈ scaled more than {ALIKE:.0f}-fold{of_rates}"


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
