"""Are planted copies found? Training images are ranked by a score; a rank of 1 is first, and equal scores are ranked by row.

Q  queries;  N  training images;  c  copies of each query's image


Planted images: a test whose answer is known. Queries are images that were put into the training set, some times each: do
methods rank these copies first?
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from journey.attribution.targets import STEP
from journey.data.duplicates import INJECTED, TRAIN, duplicate_id
from journey.engine.checks import require, require_count
from journey.engine.seeding import numpy_generator
from journey.engine.spec import describe
from journey.engine.workspace import Workspace, get
from journey.evaluation import rows
from journey.evaluation.ranking import candidate_index, candidate_settings
from journey.evaluation.statistics import bootstrap_with_observed, query_interval
from journey.pipeline.images import ImageSet, read_images
from journey.pipeline.interfaces import Evaluate, Evaluation, Experiment, Inputs, Model, Score
from journey.pipeline.settings import Sampling, Start

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


def ranks(scores: np.ndarray) -> np.ndarray:
    """Of every training image, by scores [..., N]. int64 [..., N]

    >>> ranks(np.array([0.5, 2.0, 0.5]))
    array([2, 1, 3])
    """
    order = np.argsort(-scores, axis=-1, kind="stable")
    found = np.empty_like(order)
    np.put_along_axis(
        found, order, np.broadcast_to(np.arange(1, scores.shape[-1] + 1), order.shape), -1
    )
    return found


def other_duplicate_ranks(ranked: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Of the copies of all other queries' images. ranked: [..., Q, N]; copies: rows [Q, c] → [..., Q, (Q − 1) c]

    >>> of_others(np.array([[1, 2, 3], [3, 2, 1]]), copies=np.array([[0], [2]]))
    array([[3],
           [3]])
    """
    of_query = [ranked[..., q, np.delete(copies, q, 0).ravel()] for q in range(len(copies))]
    return np.stack(of_query, -2)


def recall(of_copies: np.ndarray, k: int) -> np.ndarray:
    """How many copies are among the first k, as a share of how many could be: min(k, c). of_copies: ranks [..., c] → [...]

    >>> recall(np.array([1, 3, 20]), k=2)
    np.float64(0.5)
    """
    return (of_copies <= k).sum(-1) / min(k, of_copies.shape[-1])


def chance_recall(k: int, num_copies: int, num_train: int) -> float:
    """What `recall` is expected to be of a random order: k c / N copies are among the first k.

    >>> by_chance(k=10, num_copies=5, num_train=1000)
    0.01
    """
    return k * num_copies / num_train / min(k, num_copies)


ALL_STEPS = "all_steps"  # the mean over them


CHANCE = "chance"


RECALL = "recall_copies"  # among as many first training images as there are copies


FEW = 10  # or among so many


MANY = 50  # among which copies of other queries' images have no place: a method that puts them there finds what is odd


@dataclass
class Planted(Evaluation):
    """Every method with one hyper-parameter, its scores as they are."""

    name: ClassVar[str] = "planted"
    candidates: dict[str, float] = field(
        default_factory=dict
    )  # the hyper-parameter of a method that has several
    num_bootstrap: int = 2000

    def check(self, where: str) -> None:
        require_count(f"{where}.num_bootstrap", self.num_bootstrap, least=100, most=100_000)

    def check_run(self, where: str, sampling: Sampling, model: Model) -> None:
        planted = sampling.start is Start.injected
        require(
            planted,
            "sampling.start",
            sampling.start.value,
            "planted with evaluation=planted, whose queries are planted",
        )

    def needs(self, experiment: Experiment, scores: dict[str, Score]) -> Inputs:
        """Raises: ConfigError naming a method of which one hyper-parameter must be named."""
        for name, score in scores.items():
            candidate_index(name, score.method, self.candidates)
        return Inputs()

    def evaluate(self, spec: Evaluate, workspace: Workspace) -> dict[str, object]:
        images = spec.trajectories.checkpoint.images
        kept = get(images, workspace).path
        train, originals = read_images(kept / TRAIN), read_images(kept / INJECTED)
        copies = rows_of_copies(train, originals)  # [Q, c]
        num_train, (num_queries, num_copies) = len(train), copies.shape
        random = numpy_generator(spec.seed, "planted")
        weights = bootstrap_with_observed(num_queries, self.num_bootstrap, random)
        depths = {RECALL: num_copies, f"recall_{FEW}": FEW}
        found, recalls = [], {}

        def state(values: np.ndarray, **what: str) -> None:
            """Of values [S, Q], with intervals over queries."""
            of_targets = {
                STEP: query_interval(values, weights),
                ALL_STEPS: query_interval(values.mean(0), weights),
            }
            found.extend(rows.rows_of_targets(of_targets, spec.steps, **what))

        for name, score in spec.scores.items():
            candidate = candidate_index(name, score.method, self.candidates)
            ranked = ranks(get(score, workspace).array("scores.npy")[candidate])  # [S or 1, Q, N]
            ranked = np.broadcast_to(ranked, (len(spec.steps), *ranked.shape[1:]))
            of_copies = np.take_along_axis(ranked, copies[None], -1)  # [S, Q, c]
            recalls[name] = {quantity: recall(of_copies, k) for quantity, k in depths.items()}
            for quantity, values in recalls[name].items():
                state(values, quantity=quantity, method=name)
            others = other_duplicate_ranks(ranked, copies)  # [S, Q, (Q − 1) c]
            state((others <= MANY).mean(-1), quantity=f"others_{MANY}", method=name)
            ends = _median(np.median(of_copies, -1), weights)
            found += rows.rows_of_targets(
                {STEP: ends}, spec.steps, quantity="median_rank", method=name
            )
        first = next(iter(recalls))
        for other in list(recalls)[1:]:
            difference = recalls[first][RECALL] - recalls[other][RECALL]
            state(difference, quantity="difference", method=first, against=other)
        expected = {
            quantity: chance_recall(k, num_copies, num_train) for quantity, k in depths.items()
        }
        expected |= {f"others_{MANY}": MANY / num_train, "median_rank": (num_train + 1) / 2}
        for quantity, value in expected.items():
            known = (np.full(len(spec.steps), value),) * 3
            found += rows.rows_of_targets(
                {STEP: known}, spec.steps, quantity=quantity, method=CHANCE
            )
        return {
            "num_train": num_train,
            "num_queries": num_queries,
            "copies": num_copies,
            "jitter": images.dataset.jitter,
            "num_bootstrap": self.num_bootstrap,
            "steps": list(spec.steps),
            "candidates": candidate_settings(spec.scores, self.candidates),
            "rows": found,
            "methods": {name: describe(score.method) for name, score in spec.scores.items()},
        }

    # ------------------------------------------------------------------------------------------ how it is shown

    def candidate_index(self, result: dict, method: str) -> dict[str, float] | None:
        return result["candidates"][method]

    def headline(self, result: dict) -> list[rows.Row]:
        return rows.select(result["rows"], quantity=RECALL, target=ALL_STEPS)

    def curves(self, result: dict) -> dict[str, list[rows.Row]]:
        titles = {
            RECALL: "Copies among as many first images,",
            "median_rank": "Median rank of a copy,",
        }
        return {
            title: rows.select(result["rows"], quantity=of, target=STEP)
            for of, title in titles.items()
        }

    def tables(self, result: dict) -> "list[Table]":
        from journey.evaluation.planted.show import recall_table

        return [recall_table(result)]

    def figures(self, result: dict) -> "dict[str, Figure]":
        from journey.evaluation.planted.show import recall_by_step

        return {"recall_by_step.png": recall_by_step(result)}


def rows_of_copies(train: ImageSet, originals: ImageSet) -> np.ndarray:
    """Which training images are copies of each original, by their ids. int64 [Q, c]

    Raises: ValueError if there are none, or not as many of each.
    """
    row_of = {name: row for row, name in enumerate(train.ids)}
    found = []
    for name in originals.ids:
        of = []
        while (row := row_of.get(duplicate_id(name, len(of)))) is not None:
            of.append(row)
        found.append(of)
    if len({len(of) for of in found}) != 1 or not found[0]:
        raise ValueError("the training images do not hold as many copies of every planted image")
    return np.array(found)


def _median(values: np.ndarray, weights: np.ndarray) -> rows.Interval:
    """Of values [S, Q] over queries, with the percentiles of its bootstrap. weights: [B, Q], the observed ones first"""
    drawn = np.stack([np.median(np.repeat(values, w, axis=-1), axis=-1) for w in weights])  # [B, S]
    return drawn[0], *np.percentile(drawn[1:], (2.5, 97.5), axis=0)
