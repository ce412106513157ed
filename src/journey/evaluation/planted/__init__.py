"""A test with a known answer: queries are images whose duplicates are in the training set.

Do methods rank a query's duplicates first? Rank 1 has the highest score; equal scores are ranked by
row.

    Q  queries;  N  training images;  c  duplicates of each query;  S  steps
"""

import itertools
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from journey.attribution.targets import STEP
from journey.data.duplicates import INJECTED, TRAIN, duplicate_id
from journey.engine.checks import require, require_count
from journey.engine.seeding import numpy_generator
from journey.engine.spec import describe
from journey.engine.workspace import Workspace, get
from journey.evaluation.ranking import candidate_index, candidate_settings
from journey.evaluation.rows import Row, percent, rows_of_targets, select
from journey.evaluation.statistics import bootstrap_with_observed, percentiles, query_interval
from journey.pipeline.images import ImageSet, read_images
from journey.pipeline.interfaces import (
    Evaluate,
    Evaluation,
    Experiment,
    Inputs,
    Model,
    Result,
    Score,
)
from journey.pipeline.settings import Sampling, Start

ALL_STEPS = "all_steps"  # the mean over them
CHANCE = "chance"
RECALL = "recall"  # among the first c training images
FEW = 10  # a fixed number of first images, for recall
MANY = 50  # first images in which a method that ranks unusual images first has duplicates of others


def recall(ranks: np.ndarray, k: int) -> np.ndarray:
    """Return the share of duplicates among the first k, of the min(k, c) that could be. [...]

    >>> recall(np.array([1, 3, 20]), k=2)
    np.float64(0.5)
    """
    return (ranks <= k).sum(-1) / min(k, ranks.shape[-1])


def chance_recall(k: int, num_copies: int, num_train: int) -> float:
    """Return the expected recall of a random order, with k c / N duplicates among the first k.

    >>> chance_recall(k=10, num_copies=5, num_train=1000)
    0.01
    """
    return k * num_copies / num_train / min(k, num_copies)


def duplicate_indices(train: ImageSet, originals: ImageSet) -> np.ndarray:
    """Return which training images are duplicates of each original, by their ids. int64 [Q, c]

    Raises:
        ValueError: There are none, or not equally many of each.
    """
    row_of = {name: row for row, name in enumerate(train.ids)}
    indices = []
    for name in originals.ids:
        rows: list[int] = []
        while (row := row_of.get(duplicate_id(name, len(rows)))) is not None:
            rows.append(row)
        indices.append(rows)
    if not indices[0] or any(len(rows) != len(indices[0]) for rows in indices):
        raise ValueError("the training images do not have equally many duplicates of each query")
    return np.array(indices)


@dataclass
class Planted(Evaluation):
    """Recall of injected duplicates by every method, with one hyper-parameter each."""

    name: ClassVar[str] = "planted"
    show: ClassVar[str] = "journey.evaluation.planted.show"
    candidates: dict[str, float] = field(default_factory=dict)  # of methods with several candidates
    num_bootstrap: int = 2000  # replicates of the bootstrap

    def check(self, where: str) -> None:
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        allowed = "injected with evaluation=planted, whose queries have duplicates"
        start = sampling.start
        require(start is Start.injected, "sampling.start", start.value, allowed)

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> Inputs:
        candidate_settings(scores, self.candidates)  # refuses an ambiguous one
        return Inputs()

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> Result:
        from scipy.stats import rankdata

        # Which training images are duplicates.
        images, steps = spec.trajectories.checkpoint.images, spec.steps
        folder = get(images, workspace).path
        train, originals = read_images(folder / TRAIN), read_images(folder / INJECTED)
        copies = duplicate_indices(train, originals)  # [Q, c]
        num_train, (num_queries, num_copies) = len(train), copies.shape
        random = numpy_generator(spec.seed, "planted")
        weights = bootstrap_with_observed(num_queries, self.num_bootstrap, random)
        depths = {RECALL: num_copies, f"recall_{FEW}": FEW}
        other_duplicates = f"other_duplicates_{MANY}"
        rows, recalls = [], {}

        # Ranks of a query's duplicates, and of those of other queries.
        for name, score in spec.scores.items():
            candidate = candidate_index(name, score.method, self.candidates)
            scores = get(score, workspace).array("scores.npy")[candidate]  # [S or 1, Q, N]
            ranks = rankdata(-scores, method="ordinal", axis=-1)
            ranks = np.broadcast_to(ranks, (len(steps), *ranks.shape[1:]))
            own = np.take_along_axis(ranks, copies[None], -1)  # [S, Q, c]
            for quantity, k in depths.items():
                values = recall(own, k)
                rows += _rows(values, weights, steps, quantity=quantity, method=name)
                if quantity == RECALL:
                    recalls[name] = values
            others = [ranks[:, q, np.delete(copies, q, 0).ravel()] for q in range(num_queries)]
            share = (np.stack(others, 1) <= MANY).mean(-1)  # [S, Q]
            rows += _rows(share, weights, steps, quantity=other_duplicates, method=name)
            typical = np.median(own, -1)  # [S, Q]
            medians = [np.median(np.repeat(typical, w, axis=-1), axis=-1) for w in weights]
            interval = {STEP: percentiles(np.stack(medians))}
            rows += rows_of_targets(interval, steps, quantity="median_rank", method=name)

        # Differences of every two methods, and what a random order would give.
        for name, other in itertools.combinations(sorted(recalls), 2):
            conditions = {"quantity": "difference", "method": name, "against": other}
            rows += _rows(recalls[name] - recalls[other], weights, steps, **conditions)
        expected = {name: chance_recall(k, num_copies, num_train) for name, k in depths.items()}
        expected |= {other_duplicates: MANY / num_train, "median_rank": (num_train + 1) / 2}
        for quantity, value in expected.items():
            constant = np.full(len(steps), value)
            intervals = {STEP: (constant, constant, constant)}
            rows += rows_of_targets(intervals, steps, quantity=quantity, method=CHANCE)
        return {
            "num_train": num_train,
            "num_queries": num_queries,
            "num_copies": num_copies,
            "jitter": images.dataset.jitter,
            "num_bootstrap": self.num_bootstrap,
            "steps": list(steps),
            "candidates": candidate_settings(spec.scores, self.candidates),
            "rows": rows,
            "methods": {name: describe(score.method) for name, score in spec.scores.items()},
        }

    def chosen(self, result: dict, method: str) -> dict[str, float] | None:
        return result["candidates"][method]

    def headline(self, result: dict) -> list[Row]:
        return select(result["rows"], quantity=RECALL, target=ALL_STEPS)

    def curves(self, result: dict) -> dict[str, list[Row]]:
        rows = result["rows"]
        return {
            "Recall of duplicates, %": percent(select(rows, quantity=RECALL, target=STEP)),
            "Median rank of a duplicate": select(rows, quantity="median_rank", target=STEP),
        }


def _rows(
    values: np.ndarray, weights: np.ndarray, steps: tuple[int, ...], **conditions: str
) -> list[Row]:
    """Return rows of means over queries of values [S, Q]: at every step, and over all steps."""
    intervals = {
        STEP: query_interval(values, weights),
        ALL_STEPS: query_interval(values.mean(0), weights),
    }
    return rows_of_targets(intervals, steps, **conditions)
