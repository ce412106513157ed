"""What a result cost, from the manifests of what it is made from."""

from collections import defaultdict

from journey.artifacts.graph import ancestors
from journey.artifacts.keep import All
from journey.artifacts.specs import Evaluate, Images, Sample, Score, Spec, Train
from journey.artifacts.store import Store


def of_method(score: Score, store: Store) -> dict[str, float]:
    """What a method's scores cost beside the models and journeys they explain; shared features count for every method.

    gradients: backward passes, one for each example and draw.
    """
    total = {"seconds": 0.0, "gradients": 0, "bytes": 0}
    for made in [score, *ancestors(score)]:
        if _explained(made) or (cost := store.cost(made)) is None:
            continue
        total["seconds"] += cost["seconds"]
        total["bytes"] += cost["bytes"]
        total["gradients"] += cost["facts"].get("gradients", 0)
    return total | {"seconds": round(total["seconds"], 1)}


def _explained(made: Spec) -> bool:
    return isinstance(made, Sample | Images) or (isinstance(made, Train) and made.keep == All())


def by_stage(evaluation: Evaluate, store: Store) -> dict[str, dict[str, float]]:
    """Worker-seconds and bytes, by stage, of all that a result is made from and the store knows of."""
    seconds, size = defaultdict(float), defaultdict(int)
    for made in ancestors(evaluation):
        if cost := store.cost(made):
            stage = made.stage_name
            seconds[stage] += cost["seconds"]
            size[stage] += cost["bytes"]
    return {"seconds": _with_total(seconds), "bytes": _with_total(size)}


def _with_total(of: dict[str, float]) -> dict[str, float]:
    return {stage: round(value, 1) for stage, value in {**of, "total": sum(of.values())}.items()}
