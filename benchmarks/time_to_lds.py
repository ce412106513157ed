"""Seconds of featurization that each method needs to reach an LDS on digits, over noise samples.

    command     OMP_NUM_THREADS=1 python benchmarks/time_to_lds.py [artifacts=…]
    reference   Journey-TRAK, independent noise samples, one vmap pass for each with `trak.TRAKer`
                and its projector (featurize.py)
    ours        Journey-TRAK, stratified noise samples, all of an image at once, sparse projection
    antithetic  ours, with pairs (ε, −ε)
    kronecker   ours, with LoGra projection to rank 8
    ekfac       EK-FAC at the step, with its factors, from the same gradients
    kfac        EK-FAC with LoGra projection to rank 16, with λ = 0.001 of the mean eigenvalue
    bar         ours 30× cheaper at the best LDS of the reference

The reference and EK-FAC are also run with one checkpoint instead of three. The LDS is over 64
subsets × 2 training seeds. That of the reference is computed from our features with independent
noise samples: the gradients are equal, and the projection hardly matters (experiments/ablations).
All numbers are written to experiments/ablations/time_to_lds.json.

Seconds are those of one image, measured here, × the number of gradients of an attribution (training
images and queries, of every checkpoint). The reference takes noise samples × a gradient + a
projection, at its best batch size.
"""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import featurize
from hydra import compose, initialize_config_dir

from journey import experiment
from journey.attribution.ekfac import EKFAC, ekfac_batches, estimate_ekfac
from journey.attribution.features import PRECONDITION_BATCH, precondition
from journey.attribution.gradient import EKFACFactors
from journey.attribution.gradients import choose_plan
from journey.attribution.kronecker import choose_kronecker_plan, project_layers_kfac
from journey.attribution.logra import project_layers
from journey.attribution.targets import PAIRED_STEPS, TRAJECTORY
from journey.components import COMPONENTS
from journey.config.compose import CONF, parse, register_schemas
from journey.config.run import RunConfig
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.evaluation.rows import Row, format_interval, method_names, select
from journey.report.write import method_cost

DIGITS = featurize.CASES["digits"]
FILE = Path(__file__).parents[1] / "experiments/ablations/time_to_lds.json"
EXPERIMENT = ["experiment=methods", "vary.target=[]"]
NUM_SAMPLES = (2, 4, 8, 16, 32, 64, 128)
RANK, KFAC_RANK, DAMPING = 8, 16, 0.001
ONE_CHECKPOINT = "attribution.num_checkpoints=1"
RUNS = {  # numbers of noise samples, and overrides
    "reference": (NUM_SAMPLES, ["method=[journey]", "attribution.stratified=false"]),
    "reference, 1 checkpoint": (
        NUM_SAMPLES,
        ["method=[journey]", "attribution.stratified=false", ONE_CHECKPOINT],
    ),
    "ours": (NUM_SAMPLES, ["method=[journey]"]),
    "antithetic": (NUM_SAMPLES, ["method=[journey]", "attribution.antithetic=true"]),
    "kronecker": (
        NUM_SAMPLES,
        [
            "method=[journey]",
            "attribution.projection=kronecker",
            f"attribution.projection_rank={RANK}",
        ],
    ),
    "ekfac": (NUM_SAMPLES[:5], ["method=[ekfac]"]),
    "ekfac, 1 checkpoint": (NUM_SAMPLES[:5], ["method=[ekfac]", ONE_CHECKPOINT]),
    "kfac, 1 checkpoint": (
        NUM_SAMPLES[:5],
        [
            "method=[ekfac]",
            "attribution.projection=kronecker",
            f"method.ekfac.damping=[{DAMPING}]",
            ONE_CHECKPOINT,
        ],
    ),
}


def compose_run(num_samples: tuple[int, ...], overrides: list[str]) -> RunConfig:
    """Return a run with a variant of its method for each number of noise samples."""
    first, *others = num_samples
    swept = [f"attribution.num_samples={first}", f"vary.num_samples={others}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse(compose("config", [*EXPERIMENT, *swept, *overrides]))


def evaluate(run: RunConfig) -> dict[int, dict[str, Row]]:
    """Return the rows of LDS by number of noise samples and target."""
    workspace = Workspace(Store(Path(run.artifacts)), run.compute, run.tracking, "time_to_lds")
    specs = experiment.load_experiment(run, workspace.store)
    target = specs.evaluation(run.evaluation, run.all_methods)
    for _ in run.compute.make([target], workspace):
        pass
    rows = json.loads((get(target, workspace).path / "result.json").read_text())["rows"]
    by_num_samples = {}
    for name in method_names(rows, "lds"):
        selected = select(rows, quantity="lds", method=name, score_transform="chosen")
        num_samples = run.all_methods[name].num_samples
        by_num_samples[num_samples] = {row["target"]: row for row in selected}
    return by_num_samples


def gradients_per_checkpoint(run: RunConfig) -> int:
    """Return how many examples of Journey-TRAK have a gradient: training images and queries."""
    store, method = Store(Path(run.artifacts)), run.method["journey"]
    cost = method_cost(experiment.load_experiment(run, store).scores(method), store)
    return int(cost["gradients"]) // (method.num_samples * method.num_checkpoints)


def reference_costs() -> list[tuple[float, float]]:
    """Return the seconds of an image's gradient and projection, for each batch size."""
    costs = []
    for batch in DIGITS.reference_batches:
        trials = []
        for _ in range(3):
            setting = featurize.setting(DIGITS)
            trials.append(featurize.reference(*setting, DIGITS.projection_dim, batch))
        total, projection = (statistics.median(parts) for parts in zip(*trials, strict=True))
        gradient = (total - projection) / DIGITS.num_images / DIGITS.num_samples
        costs.append((gradient, projection / DIGITS.num_images))
    return costs


def sparse_cost(
    num_samples: int, ekfac: EKFAC | None = None, damping: tuple[float, ...] = ()
) -> float:
    """Return the seconds of an image with sparse projection, preconditioned for every λ."""
    setting = featurize.setting(replace(DIGITS, num_samples=num_samples))
    plan = choose_plan(*setting, featurize.MEMORY_GIB)
    project = featurize.sparse_projection(setting[0], DIGITS.projection_dim)
    if ekfac is not None:
        project = precondition(project, ekfac, damping, PRECONDITION_BATCH)
    times = [featurize.seconds(featurize.ours, *setting, plan, project) for _ in range(3)]
    return statistics.median(times) / DIGITS.num_images


def logra_cost(num_samples: int, ekfac: EKFAC | None = None) -> float:
    """Return the seconds of an image with LoGra projection, preconditioned for one λ by `ekfac`."""
    objective, *rest = featurize.setting(replace(DIGITS, num_samples=num_samples))
    if ekfac is None:
        network = project_layers(objective.network, RANK, 0, "benchmark")
    else:
        settings = (DAMPING, KFAC_RANK, 0, "benchmark")
        network = project_layers_kfac(objective.network, ekfac, *settings)
    objective = replace(objective, network=network)
    plan = choose_kronecker_plan(objective, *rest, featurize.MEMORY_GIB)
    times = [featurize.seconds(featurize.logra, objective, *rest, plan) for _ in range(3)]
    return statistics.median(times) / DIGITS.num_images


def estimate(num_images: int) -> EKFAC:
    """Return the EK-FAC factors of the benchmark's network, from some images."""
    objective, examples, _ = featurize.setting(replace(DIGITS, num_images=num_images))
    schedule = objective.schedule
    batches = (examples, schedule.num_timesteps, 0, EKFACFactors.batch_size)
    return estimate_ekfac(
        objective.network, objective.predict(), schedule, lambda: ekfac_batches(*batches)
    )


def featurization_seconds(runs: dict[str, RunConfig]) -> dict[str, dict[int, float]]:
    """Return the seconds of every run by number of noise samples."""
    # Of an image.
    (method,), num_train = runs["ekfac"].method.values(), runs["ekfac"].dataset.num_train
    damping, ekfac = tuple(method.damping), estimate(DIGITS.num_images)
    times = [featurize.seconds(estimate, num_train) for _ in range(3)]
    factor_seconds = statistics.median(times)
    print(f"EK-FAC factors of {num_train} images: {factor_seconds:.1f} s")
    costs, sparse = reference_costs(), {k: sparse_cost(k) for k in NUM_SAMPLES}
    reference = {}
    for k in NUM_SAMPLES:
        reference[k] = min(k * gradient + projection for gradient, projection in costs)
    per_image = {
        "reference": reference,
        "ours": sparse,
        "antithetic": sparse,
        "kronecker": {k: logra_cost(k) for k in NUM_SAMPLES},
        "ekfac": {k: sparse_cost(k, ekfac, damping) for k in NUM_SAMPLES},
        "kfac": {k: logra_cost(k, ekfac) for k in NUM_SAMPLES},
    }

    # Of all images and checkpoints.
    num_gradients, seconds = gradients_per_checkpoint(runs["reference"]), {}
    for name, run in runs.items():
        kind, (method,) = name.split(",")[0], run.method.values()
        once = factor_seconds if kind in ("ekfac", "kfac") else 0.0
        seconds[name] = {}
        for k in RUNS[name][0]:
            per_checkpoint = once + num_gradients * per_image[kind][k]
            seconds[name][k] = method.num_checkpoints * per_checkpoint
    return seconds


def main() -> None:
    """Write all LDS and seconds; print them and the ratios of cost at the reference's best LDS."""
    register_schemas(COMPONENTS)
    runs, results = {}, {}
    for name, (num_samples, overrides) in RUNS.items():
        runs[name] = compose_run(num_samples, [*overrides, *sys.argv[1:]])
        results[name] = evaluate(runs[name])
    seconds = featurization_seconds(runs)
    lines = []
    for name, by_num_samples in results.items():
        (method,) = runs[name].method.values()
        for k, row in by_num_samples.items():
            sizes = {"num_checkpoints": method.num_checkpoints, "num_samples": k}
            line = {"run": name.split(",")[0], **sizes, "seconds": seconds[name][k]}
            for target in (PAIRED_STEPS, TRAJECTORY):
                line[target] = {end: row[target][end] for end in ("value", "low", "high")}
            lines.append(line)
    command = "OMP_NUM_THREADS=1 python benchmarks/time_to_lds.py"
    FILE.write_text(json.dumps({"command": command, "rows": lines}, indent=1) + "\n")
    for target in (PAIRED_STEPS, TRAJECTORY):
        print(f"{target}: LDS × 100 [95%], seconds")
        for name, rows in results.items():
            for k, row in rows.items():
                lds = format_interval(row[target], 1, times=100)
                print(f"  {name:23} {k:4} noise samples  {lds:20}  {seconds[name][k]:6.1f}")
        for reference in ("reference", "reference, 1 checkpoint"):
            values = {k: row[target]["value"] for k, row in results[reference].items()}
            best = max(values, key=values.get)
            budget = seconds[reference][best]
            print(
                f"  to {100 * values[best]:.1f}, which the {reference} reaches in {budget:.1f} s:"
            )
            for name, rows in results.items():
                enough = []
                for k, row in rows.items():
                    if row[target]["value"] >= values[best]:
                        enough.append(seconds[name][k])
                text = "not reached"
                if enough:
                    text = f"{min(enough):.1f} s, ratio {budget / min(enough):.1f}"
                print(f"    {name:23} {text}")


if __name__ == "__main__":
    main()
