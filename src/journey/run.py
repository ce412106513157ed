"""A run, opened in Python: its results as pandas frames and figures. It reads what the command made, and makes nothing."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from journey import experiment
from journey.cli import compose_config, refuse_numbers_for_booleans
from journey.components import COMPONENTS
from journey.config import compose
from journey.config.run import RunConfig, Task
from journey.engine.checks import require
from journey.engine.spec import Component, Spec, cache_key
from journey.engine.store import Artifact, Store
from journey.engine.workspace import Workspace
from journey.evaluation.rows import select
from journey.pipeline.images import ImageSet, read_images
from journey.pipeline.interfaces import Experiment, Sample
from journey.pipeline.settings import Target
from journey.report.write import shown_candidate, with_run_info

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class MissingResultError(LookupError):
    """What is asked for has not been made. The message says what it is and the command that makes it."""


def load_run(overrides: Sequence[str], kinds: Sequence[type[Component]] = ()) -> "Run":
    """The run that the command would make of the same words. Raises: ConfigError, or Hydra's error, naming the setting."""
    compose.register_schemas(COMPONENTS, kinds)
    composed = compose_config(list(overrides))
    run = compose.parse(composed)
    refuse_numbers_for_booleans(overrides, composed)
    store = Store(Path(run.artifacts))
    return Run(run, experiment.load_experiment(run, store), store, shlex.join(overrides))


@dataclass(frozen=True)
class Run:
    """What a run has made. words: the overrides that compose it, as one writes them for a shell.

    Every method raises MissingResultError if what it reads has not been made.
    """

    run: RunConfig
    experiment: Experiment
    store: Store
    words: str

    # ----------------------------------------------------------------------------------------------- its numbers

    @cached_property
    def result(self) -> dict:
        """What the evaluation found, with what its figures and tables need beside it."""
        target = self.experiment.evaluation(self.run.evaluation, self.run.all_methods)
        found = json.loads((self._found(target, Task.evaluate).path / "result.json").read_text())
        return with_run_info(self.run, found)

    def rows(self, **what: str | int) -> "pd.DataFrame":
        """The rows of the result that say so, such as quantity="lds", or all; `journey.evaluation.rows` says what is in them."""
        import pandas as pd

        return pd.DataFrame(select(self.result["rows"], **what))

    def lds(self) -> "pd.DataFrame":
        """LDS of every method at every target, by its best read-out, with its 95% interval, and the ceilings.

        Raises: ValueError if the evaluation is another.
        """
        import pandas as pd

        frame = pd.concat(
            [self.rows(quantity="lds", score_transform="best"), self.rows(quantity="ceiling")],
            ignore_index=True,
        )
        if frame.empty:
            raise ValueError(
                f"evaluation={self.run.evaluation.name} states no LDS; rows() has what it states"
            )
        return frame[["quantity", "method", "target", "step", "value", "low", "high"]]

    def scores(self, method: str) -> "pd.DataFrame":
        """τ: a line for each step and query, a column for each training image by its id; positive: a proponent.

        A method that does not score steps has one line for each query, whose step is what it scores: destination, trajectory.
        """
        import pandas as pd

        scores = self._scores(method)
        at, steps = self.run.all_methods[method].target, self.experiment.steps
        scored = steps if len(scores) == len(steps) and at is Target.step else [at.value]
        index = pd.MultiIndex.from_product(
            [scored, range(scores.shape[1])], names=["step", "query"]
        )
        return pd.DataFrame(
            scores.reshape(-1, scores.shape[2]), index=index, columns=list(self.images.ids)
        )

    def proponents(self, method: str, query: int, step: int, k: int = 10) -> "pd.DataFrame":
        """The k training images that a method ranks first: their ids, labels, scores and images, [H, W] or [H, W, C]."""
        return self._ranked(method, query, step, k, 1)

    def opponents(self, method: str, query: int, step: int, k: int = 10) -> "pd.DataFrame":
        """The k that it ranks last, the last of all first."""
        return self._ranked(method, query, step, k, -1)

    def _ranked(self, method: str, query: int, step: int, k: int, sign: int) -> "pd.DataFrame":
        import pandas as pd

        steps = self.experiment.steps
        require(step in steps, "step", step, f"one of {', '.join(map(str, steps))}")
        scores = self._scores(method)
        require(0 <= query < scores.shape[1], "query", query, f"in 0…{scores.shape[1] - 1}")
        of = scores[min(steps.index(step), len(scores) - 1), query]
        order = np.argsort(-sign * of, kind="stable")[:k]
        told = {
            "id": [self.images.ids[i] for i in order],
            "label": [self.images.describe(i) for i in order],
            "score": of[order],
            "image": [_upright(self.images.images[i]) for i in order],
        }
        return pd.DataFrame(told, index=pd.RangeIndex(1, len(order) + 1, name="rank"))

    # ---------------------------------------------------------------------------------------------- its pictures

    def show(self, query: int, method: str | None = None) -> "Figure":
        """One journey, and what a method ranks first and last at its steps. method: the first of the run, unless one is named"""
        from journey.diffusion.trajectories import estimate_pictures
        from journey.report import figures

        name = method or next(iter(self.run.method))
        require(
            0 <= query < self.run.sampling.num_queries,
            "query",
            query,
            f"in 0…{self.run.sampling.num_queries - 1}",
        )
        guided = figures.AttributedTrajectories(
            steps=list(self.experiment.steps),
            x0_hat=estimate_pictures(self._journeys, self.experiment.steps, self._workspace),
            train=self.images.images,
            scores=self._scores(name),
            labels=[self.images.describe(i) for i in range(len(self.images))],
            ids=self.images.ids,
            queries=self.experiment.trajectories.prompts,
        )
        return figures.trajectory_figure(
            guided, f"{self.run.name}: what guided each step ({name})", [query]
        )

    def figures(self) -> "dict[str, Figure]":
        """What the evaluation draws of its result, by file name."""
        return self.run.evaluation.figures(self.result)

    # --------------------------------------------------------------------------------------------- what it reads

    @cached_property
    def images(self) -> ImageSet:
        """The training images."""
        return read_images(self._found(self.experiment.images, Task.train).path / "train")

    @property
    def _journeys(self) -> Sample:
        """Those of the queries, once it is sure that they can be read."""
        of = self.experiment.trajectories
        for spec in (of, *([of.checkpoint.latents] if of.checkpoint.latents else [])):
            self._found(spec, Task.sample)
        return of

    def _scores(self, name: str) -> np.ndarray:
        """Of a method, with the hyper-parameter that was chosen where there is a result. [S or 1, Q, N]"""
        judged = self.run.all_methods
        require(name in judged, "method", name, f"one of {', '.join(judged)}")
        scores = self._found(self.experiment.scores(judged[name]), Task.attribute).array(
            "scores.npy"
        )
        target = self.experiment.evaluation(self.run.evaluation, judged)
        result = self.result if self.store.find(target) is not None else None
        return scores[shown_candidate(judged[name], name, self.run.evaluation, result)]

    def _found(self, spec: Spec, task: Task) -> Artifact:
        if (found := self.store.find(spec)) is None:
            doing = "" if task is Task.evaluate else f" task={task.value}"
            raise MissingResultError(
                f"{self.store.root / cache_key(spec)} has not been made; make it: journey {self.words}{doing}"
            )
        return found

    @property
    def _workspace(self) -> Workspace:
        return Workspace(self.store, self.run.compute, self.run.tracking, self.run.name)


def _upright(image: np.ndarray) -> np.ndarray:
    """[C, H, W] → [H, W], or [H, W, C] in colour."""
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
