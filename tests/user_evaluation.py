"""A user's evaluation: how similarly the scores of neighbouring steps rank training images."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from scipy.stats import spearmanr

import journey
from journey.engine.workspace import get
from journey.pipeline.interfaces import Inputs


@dataclass
class Continuity(journey.Evaluation):
    name: ClassVar[str] = "continuity"
    num_queries: int = 2

    def needs(self, experiment, scores):
        return Inputs()

    def evaluate(self, spec, workspace):
        rows = []
        for name, score in spec.scores.items():
            scores = get(score, workspace).array("scores.npy")[0]  # [step, query, train]
            for t, (first, second) in zip(spec.steps, pairwise(scores), strict=False):
                rhos = [spearmanr(first[q], second[q]).statistic for q in range(self.num_queries)]
                row = {"quantity": "continuity", "method": name, "target": "step", "step": t}
                interval = {"value": sum(rhos) / len(rhos), "low": min(rhos), "high": max(rhos)}
                rows.append(row | interval)
        return {"rows": rows}


if __name__ == "__main__":
    journey.main([Continuity])
