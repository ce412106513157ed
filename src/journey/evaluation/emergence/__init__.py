"""When the final sample is determined: trajectories are continued from each step many times.

A query's class emerges where the share of its continuations with that class rises. For every method
that scores steps: do the images that it ranks first change to the query's class at the same step?
On portraits of named parts, these take the place of classes: they are read without a classifier.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

import numpy as np

from journey.attribution.baselines import Embeddings, Encoder
from journey.data.images import train_images
from journey.data.parts import FAMILIES, HEAD, HEADS, is_unseen, portrait_parts
from journey.engine.checks import require, require_count
from journey.engine.spec import omitted_default
from journey.engine.workspace import Workspace, get
from journey.evaluation.ranking import base_rate, class_share, top_images
from journey.evaluation.rows import Row, select
from journey.pipeline.images import ImageSet, read_images
from journey.pipeline.interfaces import (
    Continuations,
    Evaluate,
    Evaluation,
    Experiment,
    Inputs,
    Model,
    Result,
    Sample,
    Score,
)
from journey.pipeline.settings import Sampler, Sampling


def check_continuations(sampling: Sampling, min_steps: int) -> None:
    """Check that continuations of one x_t can differ, and that there are enough steps."""
    allowed = "ddpm: with other samplers all continuations from x_t are the same"
    sampler, steps = sampling.sampler, sampling.steps
    require(sampler is Sampler.ddpm, "sampling.sampler", sampler.value, allowed)
    require(len(steps) >= min_steps, "sampling.steps", steps, f"at least {min_steps} steps")


class Features(Enum):
    """Features of the final sample."""

    classes = "classes"  # by two classifiers
    parts = "parts"  # of dataset=parts, read from the pixels


def check_classes(where: str, top_k: int, images: ImageSet) -> None:
    """Check that training images have several classes, and are more than the top of a ranking."""
    num_classes = len(np.unique(images.labels))
    allowed = "of two or more, which classifiers can distinguish"
    require(num_classes > 1, "dataset", f"images of {num_classes} class", allowed)
    check_top(where, top_k, images)


def check_top(where: str, top_k: int, images: ImageSet) -> None:
    """Check that training images are more than the top of a ranking."""
    allowed = f"less than the {len(images)} training images"
    require(top_k < len(images), f"{where}.top_k", top_k, allowed)


@dataclass(frozen=True)
class EmergenceInputs(Inputs):
    """The artifacts that the result of `emergence` is computed from."""

    continuations: tuple[Continuations, ...]  # [step]
    embeddings: Embeddings | None  # which the classifiers are trained on; None: parts are read


@dataclass
class Emergence(Evaluation):
    """When the final sample is determined, and whether scores reflect it."""

    name: ClassVar[str] = "emergence"
    continues_trajectories: ClassVar[bool] = True
    show: ClassVar[str] = "journey.evaluation.emergence.show"
    num_continuations: int = 64  # of each query from each step, beside the trajectory itself
    encoder: Encoder = field(default_factory=lambda: Encoder(side=96))  # of the second classifier
    top_k: int = 50  # images that are ranked first, whose classes are counted
    num_bootstrap: int = 2000  # replicates of the bootstrap
    features: Features = omitted_default(Features.classes)  # of the final sample

    def check(self, where: str) -> None:
        require_count(f"{where}.num_continuations", self.num_continuations, least=4, most=10_000)
        require_count(f"{where}.top_k", self.top_k)
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)
        self.encoder.check(f"{where}.encoder")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        check_continuations(sampling, min_steps=3)
        if self.features is Features.classes:
            self.encoder.weights(f"{where}.encoder")

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        if self.features is Features.classes:
            check_classes(where, self.top_k, images)
            return
        portrait_parts(f"{where}.features", images)
        check_top(where, self.top_k, images)

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> EmergenceInputs:
        encoder, embeddings = None, None
        if self.features is Features.classes:
            encoder, embeddings = self.encoder, Embeddings(experiment.images, self.encoder)
        continuations = [
            experiment.own_continuations(t, self.num_continuations, encoder)
            for t in experiment.steps
        ]
        return EmergenceInputs(tuple(continuations), embeddings)

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> Result:
        from journey.diffusion.trajectories import decode_pictures
        from journey.evaluation.classifiers import classify_final_samples, train_classifiers
        from journey.evaluation.emergence import analysis

        inputs, trajectories = spec.inputs_as(EmergenceInputs), spec.trajectories
        steps, num_queries = np.array(spec.steps), trajectories.num_queries
        bootstrap = analysis.Bootstrap(num_queries, self.num_bootstrap, spec.seed)
        train = train_images(trajectories.checkpoint.images, workspace)

        # Classes (or parts) of the final samples [Q] and of the training images [N].
        unseen = None
        if inputs.embeddings is None:
            images = trajectories.checkpoint.images
            held_out = read_images(get(images, workspace).path / "held_out")
            train_parts, held_out_parts = (
                portrait_parts("dataset", part) for part in (train, held_out)
            )
            parts = analysis.PartsReader(train_parts[:, HEAD].max() >= len(FAMILIES["head"]))
            final = np.array(get(trajectories, workspace).array("final.npy"))
            classes = parts.labels(decode_pictures(final, trajectories, workspace))
            train_labels = dict(zip(FAMILIES, train_parts.T, strict=True))
            class_names = FAMILIES | {"head": HEADS}
            unseen = np.array([is_unseen(query) for query in np.stack(list(classes.values()), 1)])
            rows = parts.accuracy_rows(held_out, held_out_parts)
            observed = analysis.observe_continuations(
                inputs.continuations, parts, trajectories, workspace
            )
        else:
            trained = train_classifiers(inputs.embeddings, workspace)
            classes = classify_final_samples(trained, inputs.embeddings, trajectories, workspace)
            train_labels = dict.fromkeys(classes, train.labels)
            class_names = dict.fromkeys(classes, train.class_names)
            observed = analysis.observe_continuations(
                inputs.continuations, trained, trajectories, workspace
            )
            rows = analysis.classifier_rows(trained, observed[0], bootstrap, steps)
        labels, appearance = observed  # of the continuations [S, Q, n]

        # When each is determined: over all queries, in each query, and for the queries of a class.
        correct = {name: labels[name] == classes[name][:, None] for name in classes}  # [S, Q, n]
        rows += analysis.class_rows(correct, bootstrap, steps)
        for name, f in appearance.items():
            explained = analysis.explained_variance(f, bootstrap.weights)
            rows += analysis.curve_rows(
                explained, steps, quantity="explained_variance", method=name
            )
        emergence = {}
        class_curves: dict[str, dict[str, dict]] = {name: {} for name in classes}
        for name, hits in correct.items():
            emergence[name] = analysis.halfway(hits.mean(-1), steps)  # [Q]
            for label in np.unique(classes[name]):
                queries = classes[name] == label
                curve = hits[:, queries].mean((1, 2)).tolist()
                numbers = {"num_queries": int(queries.sum()), "curve": curve}
                class_curves[name][class_names[name][label]] = numbers

        # Whether scores reflect it, with the middle one of a method's hyper-parameter candidates.
        bases = {name: base_rate(train_labels[name], classes[name]) for name in classes}  # [Q]
        per_query = []
        for name, base in bases.items():
            conditions = {"quantity": "base_rate", "method": "all images", "classifier": name}
            conditions["target"] = "training images"
            rows += analysis.scalar_rows(bootstrap.mean(base), **conditions)
        strongest: dict[str, dict[str, analysis.ByName]] = {}
        for method, score in spec.scores.items():
            one_for_all = score.shape[1] == 1  # one score for all steps
            if one_for_all and inputs.embeddings is not None:
                continue
            scores = get(score, workspace).array("scores.npy")[score.shape[0] // 2]
            top, peaks = top_images(scores, self.top_k), {}
            top = np.broadcast_to(top, (len(steps), *top.shape[1:]))
            for name, base in bases.items():
                ranked = top, train_labels[name], classes[name]
                conditions = {"method": method, "classifier": name}
                rows += analysis.ranking_rows(*ranked, bootstrap, steps, conditions, unseen)
                share = class_share(*ranked)  # [S, Q]
                per_query.append({**conditions, "class_share": share.round(4).tolist()})
                peaks[name] = analysis.attribution_steps(share, base, steps)
            if not one_for_all:
                strongest[method] = peaks
                rows += analysis.prediction_rows(method, emergence, peaks, bootstrap)

        named = {}
        for name, of_queries in classes.items():
            named[name] = np.array(class_names[name])[of_queries].tolist()
        return {
            "features": self.features.value,
            "num_train": len(train),
            "num_queries": num_queries,
            "num_continuations": self.num_continuations,
            "num_bootstrap": self.num_bootstrap,
            "top_k": self.top_k,
            "steps": list(spec.steps),
            "rows": rows,
            "queries": {
                "class": named,
                "unseen": [] if unseen is None else unseen.tolist(),
                "emergence_step": _to_json(emergence),
                "attribution_step": _to_json(strongest),
            },
            "classes": class_curves,
            "per_query": per_query,
        }

    def headline(self, result: dict) -> list[Row]:
        if self.features is Features.parts:
            return select(result["rows"], quantity="excess", target="mean_of_steps")
        return select(result["rows"], quantity="step_correlation", target="halfway")

    def curves(self, result: dict) -> dict[str, list[Row]]:
        rows, name, first = result["rows"], "class", next(iter(result["classes"]))
        if self.features is Features.parts:
            name = first = "head"
        share_title = f"Share of the query's {name} in the top {result['top_k']}"
        feature = "part" if self.features is Features.parts else name
        probability = f"P({feature} of the final sample | x_t)"
        emergence = select(rows, quantity="probability", target="step")
        shares = select(rows, quantity="class_share", classifier=first)
        named = select(emergence, method=first)  # the same feature, on the axes of the shares
        shares += [row | {"method": f"P({name} of the final sample | x_t)"} for row in named]
        return {probability: emergence, share_title: shares}


def _to_json(values: dict | np.ndarray) -> dict | list:
    """Return nested arrays as lists, with None for NaN."""
    if isinstance(values, dict):
        return {name: _to_json(value) for name, value in values.items()}
    return [float(value) if np.isfinite(value) else None for value in values]
