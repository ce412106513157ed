"""The scores of one method. Payload: scores.npy, float32 [damping, step, query, train]; kernel.json, what was solved."""

from pathlib import Path

import numpy as np

from journey import config, data
from journey.specs import Score
from journey.stages import Workspace, get
from journey.stages.sample import estimates
from journey.store import write_json
from journey.tracking import track


def run(spec: Score, partial: Path, workspace: Workspace) -> None:
    """Raises: ValueError if a score is not finite."""
    journeys, model = get(spec.journeys, workspace), spec.journeys.model
    damping, conditions = [], []
    match spec.method:
        case config.TRAK():
            from journey.attribution.methods import trak

            damping = spec.method.damping
            train, queries = (
                [get(features, workspace).array("features.npy") for features in checkpoints]
                for checkpoints in (spec.train_features, spec.query_features)
            )
            scores, conditions = trak.score(train, queries, spec.journeys.num_queries, damping)
        case config.Pixel():
            from journey.attribution.methods import pixel
            from journey.diffusion.examples import encode

            clean = encode(data.load(model.dataset)[0], model.model).x0.numpy()
            scores = pixel.score(clean, np.stack([q.x0.numpy() for q in estimates(journeys, spec.steps)]))
        case config.Random():
            from journey.attribution.methods import random

            num_train = len(data.load(model.dataset)[0])
            scores = random.score(len(spec.steps), spec.journeys.num_queries, num_train, spec.seed)
        case _:
            raise config.ConfigError(f"method.{spec.method.name}: unknown; available: journey, trak, pixel, random")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores of {spec.method.name} are not finite")
    np.save(partial / "scores.npy", scores)
    write_json(partial / "kernel.json", {"damping": damping, "condition_number": conditions})
    with track(spec, partial, workspace) as log:
        log(0, std=float(scores.std()), largest_condition_number=max(map(max, conditions), default=1.0))
