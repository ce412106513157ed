"""Seconds of featurization that ours and the reference need to reach an LDS on digits, sweeping draws.

    command    OMP_NUM_THREADS=1 python benchmarks/time_to_lds.py [artifacts=…]
    ours       stratified draws, all draws of an image at once, sparse projection
    reference  independent draws, one vmap pass per draw with `trak.TRAKer` and its projector, as `featurize.py` times it
    bar        ours 15× cheaper at the best LDS of the reference

LDS: Journey-TRAK, mean of t = 600…300, on the 64 subsets × 2 seeds of experiment=ablations. The reference's LDS is that of our
features of independent draws: gradients are equal, and how they are projected matters less (experiments/ablations).
Seconds: gradients counted in the artifacts × seconds of a gradient, and projections likewise, as measured here, in one process.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import featurize
from hydra import compose, initialize_config_module

from journey import config, experiment, launch
from journey.attribution.gradients import choose
from journey.stages import Workspace, get
from journey.store import Store

DRAWS = (2, 4, 8, 16, 32, 64, 128)
BATCHES = (32, 64, 128)  # of the reference
EXPERIMENT = ["experiment=digits", "method=[journey]", "evaluation.num_subsets=64", "evaluation.num_seeds=2"]


@dataclass(frozen=True)
class Cost:
    """Seconds of a gradient, seconds of projecting a batch, and its size."""

    gradient: float
    projection: float
    batch: int

    def seconds(self, gradients: int, rows: int) -> float:
        """Of featurizing so many gradients, averaged into so many rows."""
        return gradients * self.gradient + rows / self.batch * self.projection


def judged(stratified: bool, overrides: list[str]) -> dict[int, dict]:
    """LDS and cost of Journey-TRAK for every number of draws."""
    swept = [f"attribution.num_draws={DRAWS[0]}", f"vary.num_draws={list(DRAWS[1:])}", f"attribution.stratified={stratified}"]
    with initialize_config_module("journey.conf", version_base="1.3"):
        run = config.parse(compose("config", [*EXPERIMENT, *swept, *overrides]))
    workspace = Workspace(Store(Path(run.artifacts)), run.compute, run.tracking, "time_to_lds")
    evaluation = experiment.evaluate(run)
    launch.run([evaluation], workspace)
    lds = json.loads((get(evaluation, workspace).path / "result.json").read_text())["lds"]
    return {run.judged[name].num_draws: of for name, of in lds.items()}


def costs() -> tuple[Cost, list[Cost]]:
    """Ours, and the reference at each batch size."""
    case = featurize.CASES["digits"]
    setting = featurize.setting(case)
    plan = choose(*setting, config.Gradient.auto, 2.0)
    project = featurize.sparse(setting[0])
    featurize.ours(*setting, plan, project)  # warm
    total = featurize.seconds(featurize.ours, *setting, plan, project)
    gradients = case.num_images * case.num_draws
    mine = Cost(total / gradients, 0.0, 1)  # with its projection
    theirs = []
    for batch in BATCHES:
        total, projecting = featurize.reference(*setting, batch)
        theirs.append(Cost((total - projecting) / gradients, projecting * batch / case.num_images, batch))
    return mine, theirs


def main() -> None:
    """Print the sweep and the ratio."""
    config.register_schemas()
    sweeps = {"ours": judged(True, sys.argv[1:]), "reference": judged(False, sys.argv[1:])}
    mine, theirs = costs()
    reached: dict[str, list[tuple[float, float]]] = {"ours": [], "reference": []}
    for way, by_draws in sweeps.items():
        for draws, lds in sorted(by_draws.items()):
            gradients = lds["cost"]["gradients"]
            rows = gradients // draws
            seconds = mine.seconds(gradients, rows) if way == "ours" else min(c.seconds(gradients, rows) for c in theirs)
            mean, (low, high) = lds["paired_steps"]["mean"], lds["paired_steps"]["ci95"]
            reached[way].append((mean, seconds))
            print(f"{way:9}  {draws:4} draws  LDS {100 * mean:5.1f} [{100 * low:.1f}, {100 * high:.1f}]  {seconds:8.1f} s")
    best, its_seconds = max(reached["reference"])
    enough = [seconds for mean, seconds in reached["ours"] if mean >= best]
    if enough:
        print(
            f"at {100 * best:.1f}: reference {its_seconds:.0f} s, ours {min(enough):.0f} s, ratio {its_seconds / min(enough):.1f}"
        )
    else:
        print(f"ours does not reach {100 * best:.1f}, the best of the reference")


if __name__ == "__main__":
    main()
