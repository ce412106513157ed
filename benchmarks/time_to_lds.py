"""Seconds of featurization that each way needs to reach an LDS on digits, sweeping draws.

    command     OMP_NUM_THREADS=1 python benchmarks/time_to_lds.py [artifacts=…]
    reference   Journey-TRAK, independent draws, one vmap pass per draw with `trak.TRAKer` and its projector (featurize.py)
    ours        Journey-TRAK, stratified draws, all draws of an image at once, sparse projection
    antithetic  ours, with pairs (ε, −ε)
    kronecker   ours, projected inside the layers to 8 rows on each side
    ekfac       EK-FAC at the step, with its curvature, beginning from the same gradients
    kfac        EK-FAC inside the layers, 16 rows, with one λ of the mean eigenvalue's thousandth
    bar         ours 30× cheaper at the best LDS of the reference

The reference and EK-FAC also with one checkpoint instead of three.

LDS on 64 subsets × 2 seeds. The reference's LDS is that of our features of independent draws: its gradients are the same, and how
they are projected hardly matters (experiments/ablations). Seconds: those of an image, measured here, × the rows of an attribution
(training images and queries, of every checkpoint); of the reference, draws × a gradient + a projection, at the best of its
batch sizes.
"""

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import featurize
from hydra import compose, initialize_config_dir

from journey import experiment
from journey.attribution import kronecker
from journey.attribution.ekfac import EKFAC, ekfac_batches, estimate_ekfac
from journey.attribution.features import CACHED, precondition
from journey.attribution.gradient import EKFACFactors
from journey.attribution.gradients import choose_plan
from journey.attribution.kronecker import project_layers_kfac
from journey.attribution.logra import project_layers
from journey.attribution.targets import PAIRED_STEPS, TRAJECTORY
from journey.components import COMPONENTS
from journey.config.compose import CONF, parse, register_schemas
from journey.config.run import RunConfig
from journey.diffusion import network
from journey.engine.store import Store
from journey.engine.workspace import Workspace, get
from journey.evaluation.rows import Row, method_names, select
from journey.report.write import method_cost

DIGITS = featurize.CASES["digits"]
BATCH = EKFACFactors.batch_size
EXPERIMENT = ["experiment=methods", "vary.target=[]"]
DRAWS = (2, 4, 8, 16, 32, 64, 128)
ROWS, KFAC_ROWS, DAMPING = 8, 16, 0.001
ONE = "attribution.num_checkpoints=1"
WAYS = {
    "reference": (DRAWS, ["method=[journey]", "attribution.stratified=false"]),
    "reference, 1 checkpoint": (DRAWS, ["method=[journey]", "attribution.stratified=false", ONE]),
    "ours": (DRAWS, ["method=[journey]"]),
    "antithetic": (DRAWS, ["method=[journey]", "attribution.antithetic=true"]),
    "kronecker": (
        DRAWS,
        [
            "method=[journey]",
            "attribution.projection=kronecker",
            f"attribution.projection_rank={ROWS}",
        ],
    ),
    "ekfac": (DRAWS[:5], ["method=[ekfac]"]),
    "ekfac, 1 checkpoint": (DRAWS[:5], ["method=[ekfac]", ONE]),
    "kfac, 1 checkpoint": (
        DRAWS[:5],
        [
            "method=[ekfac]",
            "attribution.projection=kronecker",
            f"method.ekfac.damping=[{DAMPING}]",
            ONE,
        ],
    ),
}


def composed(draws: tuple[int, ...], overrides: list[str]) -> RunConfig:
    """A sweep over draws."""
    swept = [f"attribution.num_samples={draws[0]}", f"vary.num_samples={list(draws[1:])}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse(compose("config", [*EXPERIMENT, *swept, *overrides]))


def judged(run: RunConfig) -> dict[int, dict[str, Row]]:
    """LDS by target for every number of draws."""
    workspace = Workspace(Store(Path(run.artifacts)), run.compute, run.tracking, "time_to_lds")
    target = experiment.load_experiment(run, workspace.store).evaluation(
        run.evaluation, run.all_methods
    )
    for _ in run.compute.make([target], workspace):
        pass
    rows = json.loads((get(target, workspace).path / "result.json").read_text())["rows"]
    of = {
        name: select(rows, quantity="lds", method=name, score_transform="best")
        for name in method_names(rows, "lds")
    }
    return {
        run.all_methods[name].num_samples: {row["target"]: row for row in found}
        for name, found in of.items()
    }


def rows_of_checkpoint(run: RunConfig) -> int:
    """How many examples have a gradient by Journey-TRAK: training images and queries."""
    store, method = Store(Path(run.artifacts)), run.method["journey"]
    gradients = method_cost(experiment.load_experiment(run, store).scores(method), store)[
        "gradients"
    ]
    return int(gradients) // (method.num_samples * method.num_checkpoints)


def reference() -> list[tuple[float, float]]:
    """Seconds of a gradient and of the projection of an image, for each batch size."""
    costs = []
    for batch in DIGITS.reference_batches:
        runs = [
            featurize.reference(*featurize.setting(DIGITS), DIGITS.projection_dim, batch)
            for _ in range(3)
        ]
        total, projecting = (statistics.median(parts) for parts in zip(*runs, strict=True))
        costs.append(
            (
                (total - projecting) / DIGITS.num_images / DIGITS.num_samples,
                projecting / DIGITS.num_images,
            )
        )
    return costs


def ours(
    num_samples: int, estimated: EKFAC | None = None, damping: tuple[float, ...] = ()
) -> float:
    """Seconds of an image, its projections included; precondition for every λ where there is a curvature."""
    setting = featurize.setting(replace(DIGITS, num_samples=num_samples))
    plan = choose_plan(*setting, featurize.MEMORY_GIB)
    project = featurize.sparse(setting[0], DIGITS.projection_dim)
    if estimated is not None:
        project = precondition(project, estimated, damping, CACHED)
    return of_an_image(featurize.ours, *setting, plan, project)


def within_layers(num_samples: int, estimated: EKFAC | None = None) -> float:
    """Seconds of an image, projected inside the layers; precondition there for one λ where there is a curvature."""
    objective, *rest = featurize.setting(replace(DIGITS, num_samples=num_samples))
    if estimated is None:
        adapted = project_layers(objective.network, ROWS, 0, "benchmark")
    else:
        adapted = project_layers_kfac(
            objective.network, estimated, DAMPING, KFAC_ROWS, 0, "benchmark"
        )
    objective = replace(objective, network=adapted)
    return of_an_image(
        featurize.within_layers,
        objective,
        *rest,
        kronecker.choose_kronecker_plan(objective, *rest, featurize.MEMORY_GIB),
    )


def of_an_image(way: Callable, *inputs: object) -> float:
    """Seconds, the median of three."""
    return statistics.median(featurize.seconds(way, *inputs) for _ in range(3)) / DIGITS.num_images


def estimate(num_images: int) -> EKFAC:
    """The curvature of the benchmark's network, from so many images."""
    objective, examples, _ = featurize.setting(replace(DIGITS, num_images=num_images))
    predict, num_timesteps = (
        network.bind(objective.network, objective.precision),
        objective.schedule.num_timesteps,
    )
    return estimate_ekfac(
        objective.network,
        predict,
        objective.schedule,
        lambda: ekfac_batches(examples, num_timesteps, 0, BATCH),
    )


def seconds_of(runs: dict[str, RunConfig]) -> dict[str, dict[int, float]]:
    """Of every way and number of draws."""
    (method,), num_train = runs["ekfac"].method.values(), runs["ekfac"].dataset.num_train
    damping, estimated = tuple(method.damping), estimate(DIGITS.num_images)
    estimating = statistics.median(featurize.seconds(estimate, num_train) for _ in range(3))
    print(f"a curvature of {num_train} images: {estimating:.1f} s")
    costs, sparse = reference(), {k: ours(k) for k in DRAWS}
    of_image = {
        "reference": {k: min(k * gradient + row for gradient, row in costs) for k in DRAWS},
        "ours": sparse,
        "antithetic": sparse,
        "kronecker": {k: within_layers(k) for k in DRAWS},
        "ekfac": {k: ours(k, estimated, damping) for k in DRAWS},
        "kfac": {k: within_layers(k, estimated) for k in DRAWS},
    }
    rows, found = rows_of_checkpoint(runs["reference"]), {}
    for way, run in runs.items():
        kind, (method,) = way.split(",")[0], run.method.values()
        once = estimating if kind in ("ekfac", "kfac") else 0.0
        found[way] = {
            k: method.num_checkpoints * (once + rows * of_image[kind][k]) for k in WAYS[way][0]
        }
    return found


def main() -> None:
    """Print the sweeps, and how much cheaper each way reaches the best LDS of the reference."""
    register_schemas(COMPONENTS)
    runs = {
        way: composed(draws, [*overrides, *sys.argv[1:]])
        for way, (draws, overrides) in WAYS.items()
    }
    sweeps = {way: judged(run) for way, run in runs.items()}
    seconds = seconds_of(runs)
    for target in (PAIRED_STEPS, TRAJECTORY):
        print(f"{target}: LDS × 100 [95%], seconds")
        for way, by_draws in sweeps.items():
            for k, lds in by_draws.items():
                print(f"  {way:23} {k:4} draws  {_interval(lds[target])}  {seconds[way][k]:6.1f}")
        for reference_way in (way for way in runs if way.startswith("reference")):
            lds_of = {k: lds[target]["value"] for k, lds in sweeps[reference_way].items()}
            most = max(lds_of, key=lds_of.get)
            its_seconds = seconds[reference_way][most]
            print(
                f"  to {100 * lds_of[most]:.1f}, which the {reference_way} has in {its_seconds:.1f} s:"
            )
            for way, by_draws in sweeps.items():
                enough = [
                    seconds[way][k]
                    for k, lds in by_draws.items()
                    if lds[target]["value"] >= lds_of[most]
                ]
                print(
                    f"    {way:23}",
                    f"{min(enough):.1f} s, ratio {its_seconds / min(enough):.1f}"
                    if enough
                    else "not reached",
                )


def _interval(row: Row) -> str:
    return f"{100 * row['value']:5.1f} [{100 * row['low']:5.1f}, {100 * row['high']:5.1f}]"


if __name__ == "__main__":
    main()
