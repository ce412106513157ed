"""A run, opened in Python: its results as pandas frames and figures. Nothing is computed."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from journey import experiment
from journey.cli import compose_config, refuse_numbers_for_booleans, refuse_without_effect
from journey.components import COMPONENTS
from journey.config import compose
from journey.config.run import RunConfig, Task
from journey.config.words import quote_words
from journey.engine.checks import require
from journey.engine.spec import Component, Spec, cache_key
from journey.engine.store import Artifact, Store
from journey.engine.text import printable, printable_json
from journey.engine.workspace import Workspace
from journey.evaluation.lds.datamodeling import PRIMARY
from journey.evaluation.rows import select
from journey.pipeline.images import ImageSet, read_images
from journey.pipeline.interfaces import Experiment
from journey.pipeline.settings import Target
from journey.report.write import attributed_trajectories, shown_candidate, with_run_info

if TYPE_CHECKING:
    import pandas as pd
    from diffusers import DDIMPipeline, StableDiffusionPipeline
    from matplotlib.figure import Figure


class MissingResultError(LookupError):
    """An artifact is missing. The message names it and the command that computes it."""


def load_run(overrides: Sequence[str], components: Sequence[type[Component]] = ()) -> "Run":
    """Return the run that the command composes from the same overrides.

    Args:
        overrides: As on the command line, such as `experiment=digits`.
        components: A user's own components.
    """
    compose.register_schemas(COMPONENTS, components)
    overrides = quote_words(overrides, (*COMPONENTS, *components))
    composed = compose_config(overrides)
    run = compose.parse(composed)
    refuse_numbers_for_booleans(overrides, composed)
    refuse_without_effect(run.without_effect(), overrides)
    store = Store(Path(run.artifacts))
    return Run(run, experiment.load_experiment(run, store), store, shlex.join(overrides))


@dataclass(frozen=True)
class Run:
    """The results of a run. Its methods raise MissingResultError if an artifact is missing.

    Attributes:
        run: Its settings.
        experiment: Its experiment.
        store: The store of its artifacts.
        words: The overrides that compose it, quoted for a shell.
    """

    run: RunConfig
    experiment: Experiment
    store: Store
    words: str

    @cached_property
    def result(self) -> dict:
        """Return the evaluation's result, with what its figures and tables show of the run."""
        target = self.experiment.evaluation(self.run.evaluation, self.run.all_methods)
        path = self._artifact(target, Task.evaluate).path / "result.json"
        return with_run_info(self.run, json.loads(path.read_text()))

    def rows(self, **conditions: str | int) -> "pd.DataFrame":
        """Return the result's rows that have these values, such as quantity="lds", or all rows.

        `journey.evaluation.rows` explains the columns.
        """
        import pandas as pd

        return pd.DataFrame(printable_json(select(self.result["rows"], **conditions)))

    def lds(self) -> "pd.DataFrame":
        """Return the query-centred LDS of linear scores of every method, and the ceilings.

        Each has a line for every target, with a 95% interval. `rows` has other statistics.

        Raises:
            ValueError: The evaluation of the run has no LDS.
        """
        import pandas as pd

        lds = self.rows(**PRIMARY)
        ceilings = self.rows(quantity="query_centred_ceiling")
        frame = pd.concat([lds, ceilings], ignore_index=True)
        if frame.empty:
            name = self.run.evaluation.name
            raise ValueError(f"evaluation={name} has no LDS; rows() returns what it has")
        return frame[["quantity", "method", "target", "step", "value", "low", "high"]]

    def scores(self, method: str) -> "pd.DataFrame":
        """Return scores: a line for each step and query, a column for each training image's id.

        Positive scores are proponents. A method without scores for single steps has one line for
        each query, whose `step` is the name of its target.
        """
        import pandas as pd

        scores = self._scores(method)
        target, steps = self.run.all_methods[method].target, self.experiment.steps
        by_step = len(scores) == len(steps) and target is Target.step
        axes = [steps if by_step else [target.value], range(scores.shape[1])]
        index = pd.MultiIndex.from_product(axes, names=["step", "query"])
        values = scores.reshape(-1, scores.shape[2])
        return pd.DataFrame(values, index=index, columns=printable_json(list(self.images.ids)))

    def proponents(self, method: str, query: int, step: int, k: int = 10) -> "pd.DataFrame":
        """Return id, label, score and image ([H, W] or [H, W, C]) of the k highest scores."""
        return self._ranked(method, query, step, k, -1)

    def opponents(self, method: str, query: int, step: int, k: int = 10) -> "pd.DataFrame":
        """Return the same of the k lowest scores, the lowest first."""
        return self._ranked(method, query, step, k, 1)

    def _ranked(self, method: str, query: int, step: int, k: int, sign: int) -> "pd.DataFrame":
        import pandas as pd

        steps = self.experiment.steps
        require(step in steps, "step", step, f"one of {', '.join(map(str, steps))}")
        scores = self._scores(method)
        require(0 <= query < scores.shape[1], "query", query, f"in 0…{scores.shape[1] - 1}")
        of_query = scores[min(steps.index(step), len(scores) - 1), query]
        records = []
        for i in np.argsort(sign * of_query, kind="stable")[:k]:
            image = self.images.images[i]
            pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
            names = map(printable, (self.images.ids[i], self.images.describe(i)))
            records.append((*names, of_query[i], pixels))
        index = pd.RangeIndex(1, len(records) + 1, name="rank")
        return pd.DataFrame(records, index, columns=["id", "label", "score", "image"])

    def show(self, query: int, method: str | None = None) -> "Figure":
        """Return a figure of one trajectory with the top proponents and opponents of its steps.

        Args:
            query: Which query.
            method: Which method; by default the first one of the run.
        """
        from journey.report.figures import trajectory_figure

        name, last = method or next(iter(self.run.method)), self.run.sampling.num_queries - 1
        require(0 <= query <= last, "query", query, f"in 0…{last}")
        sample = self.experiment.trajectories
        for spec in (sample, sample.checkpoint.latents):
            if spec is not None:
                self._artifact(spec, Task.sample)
        workspace = Workspace(self.store, self.run.compute, self.run.tracking, self.run.name)
        scores = self._scores(name)
        trajectories = attributed_trajectories(self.experiment, self.images, scores, workspace)
        title = f"{self.run.name}: training images that influenced each step ({name})"
        return trajectory_figure(trajectories, title, [query])

    def pipeline(self) -> "DDIMPipeline | StableDiffusionPipeline":
        """Return the model, with the encoders that it has, as a pipeline of diffusers."""
        from journey.diffusion.pipeline import pipeline

        return pipeline(self._artifact(self.experiment.checkpoint(0), Task.sample).path)

    def figures(self) -> "dict[str, Figure]":
        """Return the figures of the evaluation's result, by file name."""
        return self.run.evaluation.figures(self.result)

    @cached_property
    def images(self) -> ImageSet:
        """Return the training images."""
        return read_images(self._artifact(self.experiment.images, Task.train).path / "train")

    def _scores(self, name: str) -> np.ndarray:
        """Return a method's scores [S or 1, Q, N], with the chosen damping if there is a result."""
        methods = self.run.all_methods
        require(name in methods, "method", name, f"one of {', '.join(methods)}")
        artifact = self._artifact(self.experiment.scores(methods[name]), Task.attribute)
        target = self.experiment.evaluation(self.run.evaluation, methods)
        result = self.result if self.store.find(target) is not None else None
        candidate = shown_candidate(methods[name], name, self.run.evaluation, result)
        return artifact.array("scores.npy")[candidate]

    def _artifact(self, spec: Spec, task: Task) -> Artifact:
        """Return an artifact; MissingResultError names the task that computes it."""
        artifact = self.store.find(spec)
        if artifact is None:
            path = self.store.root / cache_key(spec)
            option = "" if task is Task.evaluate else f" task={task.value}"
            command = f"journey {self.words}{option}"
            raise MissingResultError(f"{path} does not exist; compute it by: {command}")
        return artifact
