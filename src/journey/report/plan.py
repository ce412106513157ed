"""What a run would do and cost (task=plan), and how far it is (task=status). Nothing is written."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text
from safetensors import SafetensorError, safe_open

from journey.attribution.gradient import Featurize
from journey.diffusion.lora import ADAPTER_FILE
from journey.engine.costs import SIMILAR, Cost, estimate_cost, read_rates, recorded_costs
from journey.engine.graph import ancestors, missing
from journey.engine.spec import Shapes, Spec, cache_key
from journey.engine.store import Store
from journey.engine.text import printable
from journey.engine.workspace import Compute
from journey.evaluation.rows import terminal_table
from journey.launch.jobs import log_path
from journey.pipeline.interfaces import Evaluate, FullData, Train

WEIGHTS = "diffusion_pytorch_model.safetensors"  # of a model, as diffusers saves it
STATES = ("done", "running", "queued", "failed", "not started")


def show_plan(target: Evaluate, store: Store, compute: Compute) -> None:
    """Print how many artifacts of each stage exist, are missing, and what the missing ones cost.

    Times are scaled by work from similar artifacts in this store, or else from measured rates;
    without both they are unknown.
    Bytes are those of the arrays, whose shapes follow from settings and, once there is a model,
    from its parameters.

    Raises:
        StoreError: The file of the rates is damaged.
    """
    specs = {cache_key(spec): spec for spec in [target, *ancestors(target)]}
    to_compute = missing([target], lambda spec: store.find(spec) is not None)
    recorded = recorded_costs(store)
    rates = read_rates(store.root, target.trajectories.checkpoint.model.label, compute)
    parameters, costs = parameter_shapes(list(specs.values()), store), {}
    for key, spec in to_compute.items():
        rate = rates.by_name.get(spec.rate_name)
        costs[key] = estimate_cost(spec, recorded[spec.stage], rate, parameters)

    unit = "worker-hours" if compute.device == "cpu" else "GPU-hours"
    headings = ("stage", "artifacts", "cached", "to compute", unit, "MiB")
    counts: Counter[str] = Counter()
    by_stage: dict[str, list[Cost]] = {}
    for key, spec in reversed(specs.items()):
        counts[spec.stage] += 1
        stage_costs = by_stage.setdefault(spec.stage, [])
        if key in costs:
            stage_costs.append(costs[key])
    counts["total"], by_stage["total"] = len(specs), list(costs.values())
    lines = []
    for stage, to_pay in by_stage.items():
        numbers = (counts[stage], counts[stage] - len(to_pay), len(to_pay))
        lines.append([stage, *numbers, *cost_cells(to_pay)])
    table = terminal_table(headings, [lines[:-1], lines[-1:]], justify="left")

    retrained = total = gradients = 0
    for spec in to_compute.values():
        if isinstance(spec, Train) and not spec.released:
            total += 1
            retrained += spec.subset != FullData()
        if isinstance(spec, Featurize):
            gradients += spec.num_rows * spec.num_samples
    source = scaled = f"{unit}: from artifacts of similar work in {store.root}/"
    unsized = ""
    for cost in costs.values():
        if cost.measured:
            source = f"{scaled}; where there are none, {rates.source}"
        elif cost.seconds is None and "unknown" not in source:
            source += f"; unknown where none is within {SIMILAR:.0f}-fold (benchmarks/rates.py)"
        if cost.size is None:
            unsized = "; > or unknown where a network or a file decides"
    table.caption_justify = "left"
    table.caption = Text(
        f"models: {total - retrained} on all images, {retrained} retrained; "
        f"gradients: {gradients:,} images × noise samples\n"
        f"{source}\nMiB: arrays, by their shapes{unsized}"
    )
    Console().print(table)


def parameter_shapes(specs: list[Spec], store: Store) -> Shapes | None:
    """Return the shapes of the parameters of a model by name, or None if there is no model yet.

    All models of a run have the same parameters.
    """
    models = [spec for spec in specs if isinstance(spec, Train)]
    # With LoRA, that at whose weights training starts has other parameters.
    starts = {cache_key(model.start) for model in models if model.start is not None}
    for model in models:
        if cache_key(model) not in starts and (artifact := store.find(model)) is not None:
            weights = ADAPTER_FILE if model.training.lora.rank else WEIGHTS
            try:
                with safe_open(artifact.directory / weights, framework="numpy") as file:
                    names = file.keys()
                    return {name: tuple(file.get_slice(name).get_shape()) for name in names}
            except (OSError, SafetensorError):  # `get` says what is damaged
                return None
    return None


def cost_cells(costs: list[Cost]) -> tuple[str, str]:
    """Return hours and MiB of artifacts together; ">" if some are unknown.

    >>> cost_cells([Cost(3600.0, 2**20), Cost(1800.0, None)])
    ('1.5', '> 1.0')
    >>> cost_cells([Cost(36.0, None)]), cost_cells([])
    (('0.01', 'unknown'), ('0', '0'))
    """
    seconds, sizes = [], []
    for cost in costs:
        seconds.append(cost.seconds)
        sizes.append(cost.size)
    return _sum(seconds, 3600), _sum(sizes, 2**20)


def _sum(values: Sequence[float | None], unit: float) -> str:
    numbers = [value for value in values if value is not None]
    if values and not numbers:
        return "unknown"
    total = sum(numbers) / unit
    text = f"{total:.2g}" if total < 1 else f"{total:.1f}" if total < 100 else f"{total:,.0f}"
    return text if len(numbers) == len(values) else f"> {text}"


def show_status(target: Evaluate, store: Store, compute: Compute) -> None:
    """Print how many artifacts of each stage are in each state, then running and failed ones."""
    specs = [target, *ancestors(target)]
    states = artifact_states(specs, store, compute.at_work(store))
    counts: dict[str, Counter[str]] = {spec.stage: Counter() for spec in reversed(specs)}
    for spec in specs:
        counts[spec.stage][states[cache_key(spec)]] += 1
    counts["total"] = Counter(states.values())
    lines = []
    for stage, count in counts.items():
        lines.append([stage, *map(count.__getitem__, STATES)])
    groups = [lines[:-1], lines[-1:]]
    Console().print(terminal_table(("stage", *STATES), groups, justify="left"))
    for key, state in states.items():
        if state == "running":
            print(printable(f"running: {key}"))
        if state == "failed":
            log = log_path(store.root, key)
            print(printable(f"failed: {key}: {last_line(log)}"), f"(log: {log})")


def artifact_states(specs: list[Spec], store: Store, at_work: dict[str, str]) -> dict[str, str]:
    """Return the state of each artifact, by its cache key. A failed one has a log and no job.

    Args:
        specs: The artifacts.
        store: The store that has some of them.
        at_work: The states of jobs, as a launcher's `at_work` returns them.
    """
    states = {}
    for spec in specs:
        key = cache_key(spec)
        if store.find(spec) is not None:
            states[key] = "done"
        elif key in at_work:
            states[key] = at_work[key]
        else:
            states[key] = "failed" if log_path(store.root, key).exists() else "not started"
    return states


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "the log is empty"
