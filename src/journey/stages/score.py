"""The scores of one method. Payload: scores.npy, float32 [candidate, step, query, train]; kernel.json, what was solved."""

from pathlib import Path

import numpy as np
import torch

from journey import config, data
from journey.attribution import encoders
from journey.attribution.methods import cosine, datamodel, gradient, nonparametric, random
from journey.diffusion.examples import encode
from journey.diffusion.schedule import schedule_of
from journey.diffusion.training import learning_rate
from journey.evaluation import lds, subsets
from journey.specs import Score, Snapshot
from journey.stages import Workspace, get
from journey.stages.sample import estimates
from journey.store import new_array, write_json
from journey.tracking import track


def run(spec: Score, partial: Path, workspace: Workspace) -> None:
    """Raises: ValueError if a score is not finite."""
    method = spec.method
    images, _ = data.load(spec.journeys.model.dataset)
    num_steps = len(spec.steps) if getattr(method, "at", config.At.step) is config.At.step else 1
    shape = (len(config.candidates(method)), num_steps, spec.journeys.num_queries, len(images))
    scores = new_array(partial / "scores.npy", shape)
    conditions = _fill(scores, spec, images, workspace)
    if not np.isfinite(scores).all():
        raise ValueError(f"scores of {method.name} are not finite")
    scores.flush()
    write_json(partial / "kernel.json", {"condition_number": conditions})
    with track(spec, partial, workspace) as log:
        log(0, std=float(scores.std()), largest_condition_number=max((max(c) for c in conditions if c), default=1.0))


def _fill(scores: np.ndarray, spec: Score, images: data.ImageSet, workspace: Workspace) -> list[list[float]]:
    """The scores, by kind of method; returns the condition numbers of its kernels."""
    method = spec.method
    match method:
        case config.GradientMethod():
            return _of_gradients(scores, spec, method, workspace)
        case config.Unlearning():
            _of_rises(scores, spec, method, workspace)
        case config.Datamodel():
            _of_retrained_models(scores, spec, method, images, workspace)
        case config.NonparametricScore():
            _of_patches(scores, spec, method, images, workspace)
        case config.Pixel() | config.Encoder():
            _of_likeness(scores, spec, method, images, workspace)
        case config.Random():
            scores[:] = random.score(*scores.shape[1:], spec.seed)
        case _:
            raise config.ConfigError(f"method.{method.name}: no such method")
    return []


def _of_gradients(scores: np.ndarray, spec: Score, method: config.GradientMethod, workspace: Workspace) -> list[list[float]]:
    train = [[get(f, workspace).array("features.npy") for f in steps] for steps in spec.train_features]
    queries = [get(f, workspace).array("features.npy") for f in spec.query_features]
    weights = _weights([steps[0].model for steps in spec.train_features])
    return gradient.score(scores, method, train, queries, weights)


def _of_rises(scores: np.ndarray, spec: Score, method: config.Unlearning, workspace: Workspace) -> None:
    for unlearned in spec.unlearned:
        rises = get(unlearned, workspace).array("rises.npy").reshape(len(scores), -1, *scores.shape[2:])
        mean = rises.mean(1, keepdims=True) if method.at is config.At.trajectory else rises
        scores += mean / len(spec.unlearned)


def _of_retrained_models(
    scores: np.ndarray, spec: Score, method: config.Datamodel, images: data.ImageSet, workspace: Workspace
) -> None:
    masks = np.stack([subsets.mask(images.labels, m.model.subset) for m in spec.outputs])
    outputs = np.stack([get(m, workspace).array("outputs.npy").mean(0) for m in spec.outputs])
    of_target = lds.with_aggregates(outputs)[:, _targets(method.at, len(spec.steps))]
    match method.estimator:
        case config.Estimator.difference:
            scores[:] = datamodel.difference(masks, of_target)
        case config.Estimator.ridge:
            scores[:] = datamodel.ridge(masks, of_target, method.damping)


def _of_patches(
    scores: np.ndarray, spec: Score, method: config.NonparametricScore, images: data.ImageSet, workspace: Workspace
) -> None:
    journeys, model = get(spec.journeys, workspace), spec.journeys.model.model
    index = [journeys.array("timesteps.npy").tolist().index(t) for t in spec.steps]
    x_t = torch.from_numpy(journeys.array("x_t.npy")[index])
    alpha_bar = schedule_of(model, torch.device("cpu")).alpha_bar[list(spec.steps)]
    scores[:] = nonparametric.score(encode(images, model).x0, x_t, alpha_bar, method.patch_size)


def _of_likeness(
    scores: np.ndarray, spec: Score, method: config.Pixel | config.Encoder, images: data.ImageSet, workspace: Workspace
) -> None:
    clean = encode(images, spec.journeys.model.model).x0
    x0_hat = torch.stack([q.x0 for q in estimates(get(spec.journeys, workspace), spec.steps)])
    if isinstance(method, config.Encoder):
        clean = encoders.embed(clean, method)
        x0_hat = encoders.embed(x0_hat.flatten(0, 1), method).unflatten(0, scores.shape[1:3])
    scores[:] = cosine.score(clean.numpy(), x0_hat.numpy())


def _weights(models: list) -> list[float]:
    """What each checkpoint counts: the same, or its learning rate (Pruthi et al. 2020)."""
    if isinstance(models[0], Snapshot):
        return [learning_rate(m.of.training, m.step) for m in models]
    return [1 / len(models)] * len(models)


def _targets(at: config.At, num_steps: int) -> list[int]:
    """Which rows of steps, trajectory and destination."""
    return {
        config.At.step: list(range(num_steps)),
        config.At.trajectory: [num_steps],
        config.At.destination: [num_steps + 1],
    }[at]
