"""An evaluation of a user's own: how alike the scores of neighbouring steps rank the training images."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from scipy.stats import spearmanr

import journey
from journey.engine.workspace import get


@dataclass
class Continuity(journey.Evaluation):
    name: ClassVar[str] = "continuity"
    num_queries: int = 2

    def needs(self, experiment, scores):
        return {}

    def evaluate(self, spec, workspace):
        rows = []
        for name, score in spec.scores.items():
            scores = get(score, workspace).array("scores.npy")[0]  # [step, query, train]
            for t, (here, there) in zip(spec.steps, pairwise(scores), strict=False):
                rhos = [spearmanr(here[q], there[q]).statistic for q in range(self.num_queries)]
                row = {"quantity": "continuity", "method": name, "target": "step", "step": t}
                rows.append(
                    row | {"value": sum(rhos) / len(rhos), "low": min(rhos), "high": max(rhos)}
                )
        return {"rows": rows}


if __name__ == "__main__":
    journey.main([Continuity])
