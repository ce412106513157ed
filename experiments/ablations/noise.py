"""Do scores gain if each checkpoint has its own noise samples? It costs nothing.

    python experiments/ablations/noise.py [attribution.num_samples=64] [artifacts=…]

Scores are means over checkpoints. By default, all checkpoints share the noise samples (t, ε) of the
training images and queries, so the luck of these samples is not averaged. It is with
`attribution.noise_per_checkpoint=true`.

The models, queries and subsets are those of `experiment=digits`: 96 queries, 32 random halves, with
four checkpoints. Journey-TRAK and EK-FAC are computed both ways, six times with other noise samples
each time: 16 for a gradient, so that luck counts more than with the 64 of `digits`. Prints the
numbers, and writes them to noise-16.json (or another number) beside this file.

Claims and rules, written before the run, for either method:

1. Noise samples per checkpoint have the higher query-centred LDS of linear scores, mean over the
   paired steps. Supported: the 95% interval of the difference, over the six times, is above 0.
2. Scores depend less on luck: the rank correlation, over training images, between the scores of two
   of the six times is higher. It is a mean over all pairs and over the paired steps, at the λ that
   page and pictures would show for the first shared noise samples. Supported: the 95% interval of
   the difference, over queries, is above 0.

If claim 1 is supported for one method and its opposite for neither, noise per checkpoint becomes
the default. Otherwise the default remains; if claim 2 is supported for both methods, the setting is
recommended where single rankings are shown.
"""

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

import journey
from journey.engine.workspace import Workspace, get
from journey.evaluation.lds.datamodeling import PRIMARY
from journey.evaluation.rows import make_row, select
from journey.evaluation.statistics import query_mean_interval

NUM_SETS, NUM_CHECKPOINTS = 6, 4
WAYS = {"shared": False, "per_checkpoint": True}
DIFFERENCE = "per_checkpoint − shared"
WORDS = (
    "experiment=digits",
    "method=[journey,ekfac]",
    "vary.first_checkpoint=[]",
    f"attribution.num_checkpoints={NUM_CHECKPOINTS}",
    "attribution.num_samples=16",
)


def main() -> None:
    """Compute, print and write the numbers of both claims."""
    # 1. One evaluation of every method with every noise set, both ways.
    run = journey.load(*WORDS, *sys.argv[1:])
    methods = {}
    for name, way, i in itertools.product(run.run.method, WAYS, range(NUM_SETS)):
        noise = {"noise_set": NUM_CHECKPOINTS * i, "noise_per_checkpoint": WAYS[way]}
        methods[f"{name}-{way}-{i}"] = replace(run.run.method[name], **noise)
    workspace = Workspace(run.store, run.run.compute, run.run.tracking, "noise")
    target = run.experiment.evaluation(run.run.evaluation, methods)
    for _ in run.run.compute.make([target], workspace):
        pass
    result = json.loads((get(target, workspace).path / "result.json").read_text())

    rows = []
    for name in run.run.method:
        # 2. The LDS by noise set, and its difference.
        lds = {}
        for way in WAYS:
            values = []
            for i in range(NUM_SETS):
                conditions = {**PRIMARY, "method": f"{name}-{way}-{i}", "target": "paired_steps"}
                (row,) = select(result["rows"], **conditions)
                values.append(row["value"])
            lds[way] = np.array(values)
        for way, values in {**lds, DIFFERENCE: lds["per_checkpoint"] - lds["shared"]}.items():
            conditions = {"quantity": "query_centred", "method": name, "noise": way}
            row = make_row(conditions, *query_mean_interval(values))
            rows.append({**row, "deviation": float(values.std(ddof=1)), "values": values.tolist()})

        # 3. The agreement of noise sets, and its difference.
        first = f"{name}-shared-0"
        candidate = methods[first].candidates().index(result["shown"][first])
        places = [target.steps.index(t) for t in target.evaluation.paired_steps]
        agreements = {}
        for way in WAYS:
            scores = []
            for i in range(NUM_SETS):
                spec = run.experiment.scores(methods[f"{name}-{way}-{i}"])
                scores.append(get(spec, workspace).array("scores.npy")[candidate, places])
            agreements[way] = agreement(np.stack(scores))
        agreements[DIFFERENCE] = agreements["per_checkpoint"] - agreements["shared"]
        for way, values in agreements.items():
            conditions = {"quantity": "agreement", "method": name, "noise": way}
            rows.append(make_row(conditions, *query_mean_interval(values)))
    sizes = {"num_sets": NUM_SETS, "num_checkpoints": NUM_CHECKPOINTS}
    sizes |= {key: result[key] for key in ("num_train", "num_queries", "num_subsets", "num_seeds")}
    sizes["num_samples"] = run.run.attribution.num_samples
    path = Path(__file__).parent / f"noise-{sizes['num_samples']}.json"
    path.write_text(json.dumps({**sizes, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(*(f"{x:.4f}" if isinstance(x, float) else x for x in list(row.values())[:6]))


def agreement(scores: np.ndarray) -> np.ndarray:
    """Return the mean rank correlation of scores [set, step, query, train] of two sets. [query]"""
    ranks = rankdata(scores, axis=-1)
    ranks -= ranks.mean(-1, keepdims=True)
    ranks /= np.linalg.norm(ranks, axis=-1, keepdims=True)
    rhos = [(one * other).sum(-1) for one, other in itertools.combinations(ranks, 2)]
    return np.mean(rhos, axis=(0, 1))


if __name__ == "__main__":
    main()
