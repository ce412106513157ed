"""When what a final image shows is decided: journeys are continued from each step, many times, and what they end in is looked at.

A query's class emerges where its share of the continuations rises. Whether attributions know of it is asked of every method that
scores steps: do the classes of the images it ranks first turn into that of the query where the class emerges?
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from journey.attribution.baselines import Embeddings, Encoder
from journey.data.images import train_images
from journey.engine.checks import require, require_count
from journey.engine.workspace import Workspace
from journey.evaluation import rows
from journey.evaluation.ranking import base_rate, class_share, top_images
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import (
    Continuations,
    Evaluate,
    Evaluation,
    Experiment,
    Inputs,
    Model,
    Sample,
    Score,
)
from journey.pipeline.settings import Sampler, Sampling

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class EmergenceInputs(Inputs):
    """What the result of `emergence` are computed from."""

    continuations: tuple[Continuations, ...]  # [step]
    embeddings: Embeddings  # what the classifiers are trained on


@dataclass
class Emergence(Evaluation):
    name: ClassVar[str] = "emergence"
    num_continuations: int = 64  # from each step, for each query, beside that of the journey itself
    encoder: Encoder = field(
        default_factory=lambda: Encoder(side=96)
    )  # of the classifier of features
    top_k: int = 50  # training images whose classes are counted
    num_bootstrap: int = 2000

    def check(self, where: str) -> None:
        require_count(f"{where}.num_continuations", self.num_continuations, least=4, most=10_000)
        require_count(f"{where}.top_k", self.top_k)
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)
        self.encoder.check(f"{where}.encoder")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        random = sampling.sampler is Sampler.ddpm
        require(
            random,
            "sampling.sampler",
            sampling.sampler.value,
            "ddpm: others go on from x_t in one way only",
        )
        require(
            len(sampling.steps) >= 3,
            "sampling.steps",
            sampling.steps,
            "at least 3 steps, of which a curve is made",
        )
        self.encoder.weights(f"{where}.encoder")

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        classes, num_train = len(np.unique(images.labels)), len(images)
        require(
            classes > 1,
            "dataset",
            f"images of {classes} class",
            "of two or more, which classifiers can tell apart",
        )
        require(
            self.top_k < num_train,
            f"{where}.top_k",
            self.top_k,
            f"less than the {num_train} training images",
        )

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> EmergenceInputs:
        """continued: [step]; embedded: what the classifiers learn from."""
        continued = tuple(
            experiment.own_continuations(t, self.num_continuations, self.encoder)
            for t in experiment.steps
        )
        return EmergenceInputs(
            continuations=continued, embeddings=Embeddings(experiment.images, self.encoder)
        )

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        from journey.evaluation import classifiers
        from journey.evaluation.emergence import findings

        # What the final images show, and what continuations from each step do.
        embedded: Embeddings = spec.inputs_as(EmergenceInputs).embeddings
        by = classifiers.train_classifiers(embedded, workspace)
        own = classifiers.classify_final_samples(by, embedded, spec.trajectories, workspace)  # [Q]
        said, looks = findings.observe_continuations(
            spec.inputs_as(EmergenceInputs).continuations, by, spec.trajectories, workspace
        )  # [S, Q, n]

        # When it is decided, and whether attributions know of it.
        steps, num_queries = np.array(spec.steps), spec.trajectories.num_queries
        drawn = findings.Resampled(num_queries, self.num_bootstrap, spec.seed)
        train = train_images(spec.trajectories.checkpoint.images, workspace)
        emerges = {
            name: findings.halfway((said[name] == own[name][:, None]).mean(-1), steps)
            for name in own
        }  # [Q]
        found = findings.classifier_rows(by, said, drawn, steps)
        found += findings.classes_emerge(said, own, drawn, steps) + findings.looks_emerge(
            looks, drawn, steps
        )
        bases = {name: base_rate(train.labels, own[name]) for name in own}  # [Q]
        for name, base in bases.items():
            found += findings.number_row(
                drawn.mean(base),
                quantity="base_rate",
                method="all images",
                by=name,
                target="training images",
            )
        strongest = {}
        for method, score in spec.scores.items():
            if score.shape[1] > 1:  # it scores steps
                of_top = top_images(findings.middle_candidate(score, workspace), self.top_k)
                shares = {
                    name: class_share(of_top, train.labels, own[name]) for name in own
                }  # [S, Q]
                for name, share in shares.items():
                    found += findings.step_rows(
                        drawn.mean(share), steps, quantity="class_share", method=method, by=name
                    )
                strongest[method] = {
                    name: findings.strongest_steps(shares[name], bases[name], steps) for name in own
                }
                found += findings.prediction_rows(method, emerges, strongest[method], drawn)
        return {
            "num_train": len(train),
            "num_queries": num_queries,
            "num_continuations": self.num_continuations,
            "num_bootstrap": self.num_bootstrap,
            "top_k": self.top_k,
            "steps": list(spec.steps),
            "rows": found,
            "queries": {
                "class": {
                    name: [train.class_names[label] for label in labels]
                    for name, labels in own.items()
                },
                "emerges": {name: findings.as_list(where) for name, where in emerges.items()},
                "strongest": {
                    method: {
                        name: {way: findings.as_list(at) for way, at in ways.items()}
                        for name, ways in of.items()
                    }
                    for method, of in strongest.items()
                },
            },
            "classes": {
                name: findings.by_class(said[name], own[name], train.class_names) for name in own
            },
        }

    # ------------------------------------------------------------------------------------------ how it is shown

    def headline(self, result: dict) -> list[rows.Row]:
        from journey.evaluation.emergence.findings import RISE

        return rows.select(result["rows"], quantity="predicts", target=RISE)

    def curves(self, result: dict) -> dict[str, list[rows.Row]]:
        share = rows.select(
            result["rows"], quantity="class_share", by=next(iter(result["classes"]))
        )
        return {
            "P(class of the final image | x_t)": rows.select(
                result["rows"], quantity="probability", target="step"
            ),
            f"Share of the query's class in the top {result['top_k']}": share,
        }

    def tables(self, result: dict) -> "list[Table]":
        from journey.evaluation.emergence.show import emergence_tables

        return emergence_tables(result)

    def figures(self, result: dict) -> "dict[str, Figure]":
        from journey.evaluation.emergence.show import (
            attribution_figure,
            class_figure,
            emergence_figure,
        )

        pictures = {"emergence.png": emergence_figure(result), "classes.png": class_figure(result)}
        if result["queries"]["strongest"]:
            pictures["attribution.png"] = attribution_figure(result)
        return pictures
