"""How should models be retrained and measured to evaluate attributions?

    command   python experiments/protocol/study.py [artifacts]
    result    study.json, one row for each protocol and step; no method is evaluated

A protocol is a choice of three things:

    mini-batches    coupled: those of the full data without the removed images;
                    independent: those of the subset
    fraction        of the training images in a subset
    training steps  as many as of the full model, or so many that each image is seen as often

With each protocol, M subsets × R training seeds of models are trained on the digits, and the
outputs of the same queries are measured. The quantities of a row:

    spread          standard deviation of an output over subsets, relative to its mean
    common          share of that variance that all queries have in common
    noise_samples   reliability of a measurement given the models: one minus the share of the
                    variance that is due to the noise samples
    training_seeds  reliability of one training: correlation, over subsets, of two trainings on
                    the same subset

This rule was written before the study was run: take the protocol with the largest correlation over
training seeds, mean over t = 600…100. Take one within 0.05 of it if it costs a third less. After 12
subsets of each, coupled and independent mini-batches of halves were 0.07 apart, with equally large
errors. Both got 12 more subsets, and the rule is applied to all 24.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from journey import experiment
from journey.data.embedded import Digits
from journey.diffusion.ddpm import DDPM
from journey.engine.store import Store
from journey.engine.workspace import Precision, Workspace, get
from journey.evaluation.lds.reliability import given_seed, over_seeds
from journey.launch.local import Local
from journey.pipeline.interfaces import Experiment, Measure, RandomSubset
from journey.pipeline.settings import Batching, Retraining, Sampling, Training
from journey.tracking import JSONLines

PATH = Path(__file__).parent / "study.json"
R, NUM_STEPS = 2, 600
STEPS = [900, 700, 600, 500, 400, 300, 200, 100, 20]
RULE_STEPS = (600, 500, 400, 300, 200, 100)
PROTOCOLS = [  # batches, fraction, training steps of the full model and of a subset model, M
    (Batching.coupled, 0.5, NUM_STEPS, NUM_STEPS, 24),
    (Batching.independent, 0.5, NUM_STEPS, NUM_STEPS, 24),
    (Batching.coupled, 0.9, NUM_STEPS, NUM_STEPS, 12),
    (Batching.independent, 0.9, NUM_STEPS, NUM_STEPS, 12),
    (Batching.coupled, 0.5, NUM_STEPS, 2 * NUM_STEPS, 12),
    (Batching.coupled, 0.5, NUM_STEPS // 2, NUM_STEPS // 2, 12),
    (Batching.coupled, 0.5, 2 * NUM_STEPS, 2 * NUM_STEPS, 12),
    (Batching.independent, 0.5, NUM_STEPS, NUM_STEPS // 2, 12),
    (Batching.coupled, 0.75, NUM_STEPS, NUM_STEPS, 12),
    (Batching.coupled, 0.95, NUM_STEPS, NUM_STEPS, 12),
    (Batching.independent, 0.95, NUM_STEPS, NUM_STEPS, 12),
    (Batching.independent, 0.75, NUM_STEPS, NUM_STEPS, 12),
    (Batching.coupled, 0.75, NUM_STEPS, NUM_STEPS * 4 // 3, 12),
    (Batching.independent, 0.75, NUM_STEPS, NUM_STEPS * 3 // 4, 12),
]


def main(root: Path) -> None:
    """Train, measure, print and write study.json, one protocol after another."""
    store = Store(root)
    workspace = Workspace(store, Local(), JSONLines(), "protocol")
    result = {"num_seeds": R, "rows": []}
    for batches, fraction, full_steps, steps, num_subsets in PROTOCOLS:
        by_subset = measures(store, batches, fraction, full_steps, steps, num_subsets)
        flat = [measure for seeds in by_subset for measure in seeds]
        for _ in workspace.compute.make(flat, workspace):
            pass
        outputs = np.stack([get(measure, workspace).array("outputs.npy") for measure in flat])
        outputs = outputs.reshape(num_subsets, R, *outputs.shape[1:])
        seconds = [get(measure.checkpoint, workspace).manifest["seconds"] for measure in flat]
        protocol = {
            "batches": batches.value,
            "fraction": fraction,
            "full_steps": full_steps,
            "steps": steps,
            "subsets": num_subsets,
            "seconds_per_model": round(float(np.mean(seconds)), 1),
        }
        rows = quantities(outputs, flat[0].steps)
        result["rows"] += [{**protocol, **row} for row in rows]
        PATH.write_text(json.dumps(result, indent=1) + "\n")

        mean = np.mean([row["training_seeds"] for row in rows if row["step"] in RULE_STEPS])
        print(protocol, f"training_seeds, mean over t = 600…100: {mean:.2f}", flush=True)
        for row in rows:
            print("   ", row, flush=True)


def measures(
    store: Store, batches: Batching, fraction: float, full_steps: int, steps: int, num_subsets: int
) -> list[list[Measure]]:
    """Return the outputs of a protocol's models. [subset][training seed]"""
    full = Experiment(
        images=experiment.dataset_images(Digits(), store),
        model=DDPM(),
        training=Training(num_steps=full_steps),
        sampling=Sampling(steps=STEPS),
        retraining=Retraining(num_samples=64, batches=batches),
        precision=Precision.fp32,
        seed=0,
    )
    part = replace(full, training=Training(num_steps=steps))
    by_subset = []
    for i in range(num_subsets):
        models = [part.retrained(RandomSubset(i, fraction, 0), seed) for seed in range(R)]
        by_subset.append([full.outputs(model) for model in models])
    return by_subset


def quantities(outputs: np.ndarray, steps: tuple[int, ...]) -> list[dict]:
    """Return a row for every step and the final sample.

    Args:
        outputs: Measured outputs; 2 are halves of the noise samples. [M, R, 2, T, Q]
        steps: The timesteps of the T targets but the last, which is the final sample.
    """
    means = outputs.mean(2)  # [M, R, T, Q]
    spread = means.std(0, ddof=1) / means.mean(0)
    centred = (means - means.mean(0)) / means.mean(0)
    common = centred.mean(-1).var(0, ddof=1) / centred.var(0, ddof=1).mean(-1)
    noise_samples = np.mean([given_seed(outputs[:, [r]]).reliability() for r in range(R)], 0)
    of_mean = np.clip(over_seeds(outputs).reliability(), -0.99, 0.99)
    of_one = of_mean / (R - (R - 1) * of_mean)  # the inverse of the Spearman–Brown formula
    rows = []
    for i, step in enumerate([*steps, "final_sample"]):
        row = {
            "spread": spread.mean((0, 2))[i],
            "common": common.mean(0)[i],
            "noise_samples": noise_samples[i],
            "training_seeds": of_one[i],
        }
        rows.append({"step": step, **{name: round(float(v), 4) for name, v in row.items()}})
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "artifacts"))
