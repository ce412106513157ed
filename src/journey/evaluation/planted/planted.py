"""Planted images: a test whose answer is known. Queries are images that were put into the training set, some times each: do
methods rank these copies first?
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from journey import data
from journey.artifacts.graph import describe
from journey.artifacts.recipes import Recipes
from journey.artifacts.specs import Evaluate, Score
from journey.artifacts.workspace import Workspace, get
from journey.attribution.targets import STEP
from journey.config.checks import require, require_count
from journey.config.contracts import Evaluation, Model
from journey.config.groups import Sampling, Start
from journey.data import ImageSet, planting
from journey.evaluation import rows
from journey.evaluation.candidates import chosen, settings
from journey.evaluation.planted import recall
from journey.evaluation.statistics import observed_first, query_interval
from journey.seeding import numpy_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

ALL_STEPS = "all_steps"  # the mean over them
CHANCE = "chance"
RECALL = "recall_copies"  # among as many first training images as there are copies
FEW = 10  # or among so many
MANY = 50  # among which copies of other queries' images have no place: a method that puts them there finds what is odd


@dataclass
class Planted(Evaluation):
    """Every method with one hyper-parameter, its scores as they are."""

    kind: ClassVar[str] = "planted"
    candidates: dict[str, float] = field(default_factory=dict)  # the hyper-parameter of a method that has several
    num_bootstrap: int = 2000

    def check(self, where: str) -> None:
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        planted = sampling.start is Start.planted
        require(planted, "sampling.start", sampling.start.value, "planted with evaluation=planted, whose queries are planted")

    def needs(self, recipes: Recipes, scores: dict[str, Score]) -> dict[str, object]:
        """Raises: ConfigError naming a method of which one hyper-parameter must be named."""
        for name, score in scores.items():
            chosen(name, score.method, self.candidates)
        return {}

    def judge(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        images = spec.journeys.checkpoint.images
        kept = get(images, workspace).path
        train, originals = data.read(kept / planting.TRAIN), data.read(kept / planting.PLANTED)
        copies = rows_of_copies(train, originals)  # [Q, c]
        num_train, (num_queries, num_copies) = len(train), copies.shape
        random = numpy_generator(spec.seed, "planted")
        weights = observed_first(num_queries, self.num_bootstrap, random)
        depths = {RECALL: num_copies, f"recall_{FEW}": FEW}
        found, recalls = [], {}

        def state(values: np.ndarray, **what: str) -> None:
            """Of values [S, Q], with intervals over queries."""
            of_targets = {STEP: query_interval(values, weights), ALL_STEPS: query_interval(values.mean(0), weights)}
            found.extend(rows.of_targets(of_targets, spec.steps, **what))

        for name, score in spec.scores.items():
            candidate = chosen(name, score.method, self.candidates)
            ranked = recall.ranks(get(score, workspace).array("scores.npy")[candidate])  # [S or 1, Q, N]
            ranked = np.broadcast_to(ranked, (len(spec.steps), *ranked.shape[1:]))
            of_copies = np.take_along_axis(ranked, copies[None], -1)  # [S, Q, c]
            recalls[name] = {quantity: recall.recall(of_copies, k) for quantity, k in depths.items()}
            for quantity, values in recalls[name].items():
                state(values, quantity=quantity, method=name)
            others = recall.of_others(ranked, copies)  # [S, Q, (Q − 1) c]
            state((others <= MANY).mean(-1), quantity=f"others_{MANY}", method=name)
            ends = _median(np.median(of_copies, -1), weights)
            found += rows.of_targets({STEP: ends}, spec.steps, quantity="median_rank", method=name)
        first = next(iter(recalls))
        for other in list(recalls)[1:]:
            difference = recalls[first][RECALL] - recalls[other][RECALL]
            state(difference, quantity="difference", method=first, against=other)
        expected = {quantity: recall.by_chance(k, num_copies, num_train) for quantity, k in depths.items()}
        expected |= {f"others_{MANY}": MANY / num_train, "median_rank": (num_train + 1) / 2}
        for quantity, value in expected.items():
            known = (np.full(len(spec.steps), value),) * 3
            found += rows.of_targets({STEP: known}, spec.steps, quantity=quantity, method=CHANCE)
        return {
            "num_train": num_train,
            "num_queries": num_queries,
            "copies": num_copies,
            "jitter": images.dataset.jitter,
            "num_bootstrap": self.num_bootstrap,
            "steps": list(spec.steps),
            "candidates": settings(spec.scores, self.candidates),
            "rows": found,
            "methods": {name: describe(score.method) for name, score in spec.scores.items()},
        }

    # ------------------------------------------------------------------------------------------ how it is shown

    def chosen(self, result: dict, method: str) -> dict[str, float] | None:
        return result["candidates"][method]

    def headline(self, result: dict) -> list[rows.Row]:
        return rows.select(result["rows"], quantity=RECALL, target=ALL_STEPS)

    def curves(self, result: dict) -> dict[str, list[rows.Row]]:
        titles = {RECALL: "Copies among as many first images,", "median_rank": "Median rank of a copy,"}
        return {title: rows.select(result["rows"], quantity=of, target=STEP) for of, title in titles.items()}

    def tables(self, result: dict) -> "list[Table]":
        from journey.evaluation.planted import tables

        return [tables.table(result)]

    def figures(self, result: dict) -> "dict[str, Figure]":
        from journey.evaluation.planted import figures

        return {"recall_by_step.png": figures.recall_by_step(result)}


def rows_of_copies(train: ImageSet, originals: ImageSet) -> np.ndarray:
    """Which training images are copies of each original, by their ids. int64 [Q, c]

    Raises: ValueError if there are none, or not as many of each.
    """
    row_of = {name: row for row, name in enumerate(train.ids)}
    found = []
    for name in originals.ids:
        of = []
        while (row := row_of.get(planting.copy_id(name, len(of)))) is not None:
            of.append(row)
        found.append(of)
    if len({len(of) for of in found}) != 1 or not found[0]:
        raise ValueError("the training images do not hold as many copies of every planted image")
    return np.array(found)


def _median(values: np.ndarray, weights: np.ndarray) -> rows.Ends:
    """Of values [S, Q] over queries, with the percentiles of its bootstrap. weights: [B, Q], the observed ones first"""
    drawn = np.stack([np.median(np.repeat(values, w, axis=-1), axis=-1) for w in weights])  # [B, S]
    return drawn[0], *np.percentile(drawn[1:], (2.5, 97.5), axis=0)
