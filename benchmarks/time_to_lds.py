"""Seconds of featurization that ours and the reference need to reach an LDS on digits, sweeping draws.

    command    OMP_NUM_THREADS=1 python benchmarks/time_to_lds.py [artifacts=…]
    ours       stratified draws, all draws of an image at once, sparse projection
    reference  independent draws, one vmap pass per draw with `trak.TRAKer` and its projector, as `featurize.py` times it
    bar        ours 15× cheaper at the best LDS of the reference

LDS: Journey-TRAK, on 64 subsets × 2 seeds. The reference's LDS is that of our features of independent draws: its gradients are
the same, and how they are projected hardly matters (experiments/ablations). Seconds: those of an image with so many draws,
measured here, × the rows of an attribution (training images and queries, 3 checkpoints); the reference at its best batch size.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import featurize
from hydra import compose, initialize_config_dir

from journey import config, experiment, launch
from journey.__main__ import CONF
from journey.attribution.gradients import choose
from journey.stages import Workspace, get
from journey.store import Store

DRAWS = (2, 4, 8, 16, 32, 64, 128)
BATCHES = (32, 64, 128)  # of the reference
EXPERIMENT = ["experiment=digits", "method=[journey]", "evaluation.num_subsets=64", "evaluation.num_seeds=2"]


def judged(stratified: bool, overrides: list[str]) -> dict[int, dict]:
    """LDS and cost of Journey-TRAK for every number of draws."""
    swept = [f"attribution.num_draws={DRAWS[0]}", f"vary.num_draws={list(DRAWS[1:])}", f"attribution.stratified={stratified}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = config.parse(compose("config", [*EXPERIMENT, *swept, *overrides]))
    workspace = Workspace(Store(Path(run.artifacts)), run.compute, run.tracking, "time_to_lds")
    evaluation = experiment.evaluate(run)
    launch.run([evaluation], workspace)
    lds = json.loads((get(evaluation, workspace).path / "result.json").read_text())["lds"]
    return {run.judged[name].num_draws: of for name, of in lds.items()}


def ours(num_draws: int) -> float:
    """Seconds of an image, with its projection."""
    case = replace(featurize.CASES["digits"], num_draws=num_draws)
    setting = featurize.setting(case)
    plan, project = choose(*setting, config.Gradient.auto, 2.0), featurize.sparse(setting[0], case.projection_dim)
    return min(featurize.seconds(featurize.ours, *setting, plan, project) for _ in range(3)) / case.num_images


def reference() -> dict[int, tuple[float, float]]:
    """Seconds of a gradient and of the projection of a row, for each batch size."""
    case = featurize.CASES["digits"]
    costs = {}
    for batch in BATCHES:
        total, projecting = featurize.reference(*featurize.setting(case), case.projection_dim, batch)
        costs[batch] = (total - projecting) / case.num_images / case.num_draws, projecting / case.num_images
    return costs


def main() -> None:
    """Print the sweep and the ratio, for the steps and for the trajectory."""
    config.register_schemas()
    sweeps = {"ours": judged(True, sys.argv[1:]), "reference": judged(False, sys.argv[1:])}
    of_reference = reference()
    seconds: dict[tuple[str, int], float] = {}
    for draws in DRAWS:
        rows = sweeps["ours"][draws]["cost"]["gradients"] // draws
        seconds["ours", draws] = rows * ours(draws)
        seconds["reference", draws] = min(rows * (draws * gradient + row) for gradient, row in of_reference.values())
    for target in ("paired_steps", "trajectory"):
        print(f"LDS × 100 [95%], {target}")
        for draws in DRAWS:
            cells = [f"{_lds(sweeps[way][draws][target])}  {seconds[way, draws]:7.1f} s" for way in sweeps]
            print(f"  {draws:4} draws  ours {cells[0]}   reference {cells[1]}")
        _compare({way: [(by[k][target]["mean"], seconds[way, k]) for k in DRAWS] for way, by in sweeps.items()})


def _lds(judged: dict) -> str:
    low, high = judged["ci95"]
    return f"{100 * judged['mean']:5.1f} [{100 * low:5.1f}, {100 * high:5.1f}]"


def _compare(reached: dict[str, list[tuple[float, float]]]) -> None:
    best, its_seconds = max(reached["reference"])
    enough = [seconds for lds, seconds in reached["ours"] if lds >= best]
    if not enough:
        print(f"  ours does not reach {100 * best:.1f}, the best of the reference")
        return
    print(
        f"  at {100 * best:.1f}: reference {its_seconds:.0f} s, ours {min(enough):.0f} s, ratio {its_seconds / min(enough):.1f}"
    )


if __name__ == "__main__":
    main()
