"""When what a final image shows is decided: journeys are continued from each step, many times, and what they end in is looked at.

A query's class emerges where its share of the continuations rises. Whether attributions know of it is asked of every method that
scores steps: do the classes of the images it ranks first turn into that of the query where the class emerges?
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from journey import data
from journey.artifacts.recipes import Recipes
from journey.artifacts.specs import Embedded, Evaluate, Sample, Score
from journey.artifacts.workspace import Workspace
from journey.attribution.methods.encoder import Encoder
from journey.config.checks import require, require_count
from journey.config.contracts import Evaluation, Model
from journey.config.groups import Sampler, Sampling
from journey.data import ImageSet
from journey.evaluation import proponents, rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass
class Emergence(Evaluation):
    kind: ClassVar[str] = "emergence"
    num_continuations: int = 64  # from each step, for each query, beside that of the journey itself
    encoder: Encoder = field(default_factory=lambda: Encoder(side=96))  # of the classifier of features
    top_k: int = 50  # training images whose classes are counted
    num_bootstrap: int = 2000

    def check(self, where: str) -> None:
        require_count(f"{where}.num_continuations", self.num_continuations, least=4, most=10_000)
        require_count(f"{where}.top_k", self.top_k)
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)
        self.encoder.check(f"{where}.encoder")

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        random = sampling.sampler is Sampler.ddpm
        require(random, "sampling.sampler", sampling.sampler.value, "ddpm: others go on from x_t in one way only")
        require(len(sampling.steps) >= 3, "sampling.steps", sampling.steps, "at least 3 steps, of which a curve is made")
        self.encoder.weights(f"{where}.encoder")

    def check_data(self, where: str, journeys: Sample, images: ImageSet) -> None:
        classes, num_train = len(np.unique(images.labels)), len(images)
        require(classes > 1, "dataset", f"images of {classes} class", "of two or more, which classifiers can tell apart")
        require(self.top_k < num_train, f"{where}.top_k", self.top_k, f"less than the {num_train} training images")

    def needs(self, recipes: Recipes, scores: dict[str, Score]) -> dict[str, object]:
        """continued: [step]; embedded: what the classifiers learn from."""
        continued = tuple(recipes.continuations(t, self.num_continuations, self.encoder) for t in recipes.steps)
        return {"continued": continued, "embedded": Embedded(recipes.images, self.encoder)}

    def judge(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        from journey.evaluation import classifiers
        from journey.evaluation.emergence import findings  # here: importing scikit-learn takes a while

        # What the final images show, and what continuations from each step do.
        embedded: Embedded = spec.needs["embedded"]
        by = classifiers.trained(embedded, workspace)
        own = classifiers.of_finals(by, embedded, spec.journeys, workspace)  # [Q]
        said, looks = findings.seen(spec.needs["continued"], by, spec.journeys, workspace)  # [S, Q, n]

        # When it is decided, and whether attributions know of it.
        steps, num_queries = np.array(spec.steps), spec.journeys.num_queries
        drawn = findings.Resampled(num_queries, self.num_bootstrap, spec.seed)
        train = data.train_images(spec.journeys.checkpoint.images, workspace)
        emerges = {name: findings.halfway((said[name] == own[name][:, None]).mean(-1), steps) for name in own}  # [Q]
        found = findings.trusted(by, said, drawn, steps)
        found += findings.classes_emerge(said, own, drawn, steps) + findings.looks_emerge(looks, drawn, steps)
        bases = {name: proponents.base_rate(train.labels, own[name]) for name in own}  # [Q]
        for name, base in bases.items():
            found += findings.stated(
                drawn.mean(base), quantity="base_rate", method="all images", by=name, target="training images"
            )
        strongest = {}
        for method, score in spec.scores.items():
            if score.shape[1] > 1:  # it scores steps
                of_top = proponents.top(findings.middle(score, workspace), self.top_k)
                shares = {name: proponents.class_share(of_top, train.labels, own[name]) for name in own}  # [S, Q]
                for name, share in shares.items():
                    found += findings.of_steps(drawn.mean(share), steps, quantity="class_share", method=method, by=name)
                strongest[method] = {name: findings.strongest(shares[name], bases[name], steps) for name in own}
                found += findings.predicted(method, emerges, strongest[method], drawn)
        return {
            "num_train": len(train),
            "num_queries": num_queries,
            "num_continuations": self.num_continuations,
            "num_bootstrap": self.num_bootstrap,
            "top_k": self.top_k,
            "steps": list(spec.steps),
            "rows": found,
            "queries": {
                "class": {name: [train.class_names[label] for label in labels] for name, labels in own.items()},
                "emerges": {name: findings.listed(where) for name, where in emerges.items()},
                "strongest": {
                    method: {name: {way: findings.listed(at) for way, at in ways.items()} for name, ways in of.items()}
                    for method, of in strongest.items()
                },
            },
            "classes": {name: findings.by_class(said[name], own[name], train.class_names) for name in own},
        }

    # ------------------------------------------------------------------------------------------ how it is shown

    def headline(self, result: dict) -> list[rows.Row]:
        from journey.evaluation.emergence.findings import RISE

        return rows.select(result["rows"], quantity="predicts", target=RISE)

    def curves(self, result: dict) -> dict[str, list[rows.Row]]:
        share = rows.select(result["rows"], quantity="class_share", by=next(iter(result["classes"])))
        return {
            "P(class of the final image | x_t)": rows.select(result["rows"], quantity="probability", target="step"),
            f"Share of the query's class in the top {result['top_k']}": share,
        }

    def tables(self, result: dict) -> "list[Table]":
        from journey.evaluation.emergence import tables

        return tables.tables(result)

    def figures(self, result: dict) -> "dict[str, Figure]":
        from journey.evaluation.emergence import figures

        pictures = {"emergence.png": figures.emergence(result), "classes.png": figures.classes(result)}
        if result["queries"]["strongest"]:
            pictures["attribution.png"] = figures.attribution(result)
        return pictures
