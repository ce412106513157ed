"""No evaluation: the report shows trajectories, samples and scores, and nothing is retrained."""

from dataclasses import dataclass
from typing import ClassVar

from journey.engine.workspace import Workspace
from journey.pipeline.interfaces import Evaluate, Evaluation, Experiment, Inputs, Result, Score


@dataclass
class NoEvaluation(Evaluation):
    """A result without numbers. Of several values of λ, the middle one is shown."""

    name: ClassVar[str] = "none"
    least_queries: ClassVar[int] = 1

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> Inputs:
        return Inputs()

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> Result:
        return {"rows": [], "steps": list(spec.steps)}
