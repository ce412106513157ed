"""Scores of `trak.TRAKer` under one model.

Examples and noise samples are those of the features of `method=journey`. λ, relative to TRAKer's
features, is converted to its absolute unit. Its projection is normal on a CPU and Rademacher
elsewhere, so scores differ between devices by the noise of the projection.

An interrupted run starts again: TRAKer would continue with whatever weights and seed it is given.
"""

import contextlib
import functools
import io
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput

from journey.attribution.features import Batch, feature_batches
from journey.attribution.gradient import Featurize
from journey.attribution.gradients import VMAP_COPIES, Objective, activation_bytes
from journey.attribution.kernel import feature_norms, mean_eigenvalue
from journey.attribution.outputs import NoiseSamples, output
from journey.attribution.traker import TrakerScores
from journey.diffusion.network import (
    bind,
    gradient_memory,
    load_denoiser,
    num_trained,
    trained_parameters,
)
from journey.engine.checks import require
from journey.engine.files import new_array
from journey.engine.metrics import track
from journey.engine.seeding import entropy
from journey.engine.workspace import Precision, Workspace
from journey.pipeline.examples import Examples
from journey.pipeline.schedule import Schedule

# Of activations: torch.func.grad, which TRAKer uses, keeps what second derivatives would need.
ACTIVATION_COPIES = 2 * VMAP_COPIES
PROJECTION_COLUMNS = 100  # that TRAKer has in memory at once
LARGEST_BATCH = 64  # examples: TRAKer samples its projection again for every batch, so many pay


Named = dict[str, Tensor]
"""Tensors of a network, by name."""


class LossOutput(AbstractModelOutput):
    """The output that is attributed, f(x0; θ), in the form that `trak.TRAKer` requires.

    Attributes:
        schedule: The noise schedule.
        noise: Noise samples of the examples that TRAKer is given next.
        parts: Fields of `Examples` that a batch of TRAKer's holds, in this order.
    """

    def __init__(
        self, schedule: Schedule, noise: NoiseSamples, parts: tuple[str, ...] = ("x0",)
    ) -> None:
        self.schedule, self.noise, self.parts = schedule, noise, parts

    def get_output(
        self, network: nn.Module, weights: Named, buffers: Named, *tensors: Tensor
    ) -> Tensor:
        """Return the denoising loss of one example, averaged over noise samples."""
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
            example = Examples(**dict(zip(self.parts, tensors, strict=True)))
            predict = bind(network, Precision.fp32, weights)
            return output(predict, self.schedule, example, self.noise)

    def get_out_to_loss_grad(
        self, network: nn.Module, weights: Named, buffers: Named, batch: list[Tensor]
    ) -> Tensor:
        """Return TRAK's Q [B, 1], which is 1: the output is the loss."""
        return torch.ones(len(batch[0]), 1)


def make_traker_scores(spec: TrakerScores, partial: Path, workspace: Workspace) -> dict:
    """Score the training images with `trak.TRAKer`.

    Payload: scores.npy, float32 [damping, step × query, train].

    Returns:
        The number of gradients, and the name of TRAKer's projector.

    Raises:
        ValueError: A score is not finite.
    """
    # Load the model and all examples.
    denoiser = load_denoiser(spec.checkpoint, workspace)
    network, schedule, device = denoiser.network, denoiser.schedule, denoiser.device
    supported = device.type in ("cpu", "cuda")
    require(supported, "compute.device", device, "cpu or cuda, where traker runs")
    # The examples have the noise samples of our own features.
    train_spec = Featurize(spec.checkpoint, None, spec.settings, spec.seed)
    query_spec = replace(train_spec, trajectories=spec.trajectories, steps=spec.steps)
    (train,) = feature_batches(train_spec, schedule.num_timesteps, workspace, device)
    queries = feature_batches(query_spec, schedule.num_timesteps, workspace, device)
    num_train, objective = len(train.examples), Objective(network, schedule, Precision.fp32)
    size = _batch_size(objective, train, gradient_memory(workspace.compute, device))
    shape = (len(spec.damping), spec.num_queries, num_train)
    scores = new_array(partial / "scores.npy", shape)

    # Begin again.
    store, key = partial / "trak", spec.checkpoint.training_seed
    shutil.rmtree(store, ignore_errors=True)
    names = list(trained_parameters(network))
    network.requires_grad_(False)  # else the graph of every gradient stays until its projection
    task = LossOutput(schedule, train.noise)
    new_traker = functools.partial(
        TRAKer,
        network,
        task,
        num_train,
        store,
        device="cpu" if device.type == "cpu" else str(device),
        proj_dim=spec.settings.projection_dim,
        projector_seed=entropy(spec.seed, "traker") % 2**31,
        use_half_precision=False,
        grad_wrt=names,
        logging_level=logging.CRITICAL,
    )

    # Featurize the training images.
    traker = new_traker()
    traker.load_checkpoint(network.state_dict(), key)
    _in_batches(traker.featurize, task, train, size)
    norms = feature_norms(traker.saver.current_store["grads"], "training example")
    unit = mean_eigenvalue(norms, spec.settings.projection_dim, spec.damping_unit)

    # Score with every λ. The gradients of the queries are stored the first time, one TRAKer
    # experiment for each step.
    with (
        track(spec, partial, workspace) as log,
        contextlib.redirect_stderr(io.StringIO()),  # of its progress bars
    ):
        for i, relative in enumerate(spec.damping):
            traker = new_traker(lambda_reg=relative * unit)
            traker.saver.model_ids[key]["is_finalized"] = 0  # else it keeps the previous λ
            traker.finalize_features([key])
            if i == 0:
                for t, batch in zip(spec.steps, queries, strict=True):
                    weights, num_targets = traker.model.state_dict(), len(batch.examples)
                    traker.start_scoring_checkpoint(f"step{t}", weights, key, num_targets)
                    _in_batches(traker.score, task, batch, size)
            by_step = [traker.finalize_scores(f"step{t}", [key]).T for t in spec.steps]
            scores[i] = np.concatenate(by_step)
            if not np.isfinite(scores[i]).all():
                raise ValueError(f"scores at damping={relative:g} are not finite; use a larger one")
            log(i, damping=relative, std=float(scores[i].std()))
    scores.flush()
    shutil.rmtree(store)
    return {"gradients": spec.num_gradients, "projector": type(traker.projector).__name__}


def _in_batches(process: Callable[..., object], task: LossOutput, batch: Batch, size: int) -> None:
    """Call `TRAKer.featurize` or `TRAKer.score` with at most `size` examples at a time."""
    examples, task.noise = batch.examples, batch.noise
    task.parts = tuple(name for name, tensor in vars(examples).items() if tensor is not None)
    for first in range(0, len(examples), size):
        block = examples[first : first + size]
        process([vars(block)[name] for name in task.parts], num_samples=len(block))


def _batch_size(objective: Objective, batch: Batch, memory_gib: float) -> int:
    """Return how many examples fit into memory beside a block of the projection."""
    examples, noise, memory = batch.examples, batch.noise, memory_gib * 2**30
    d = num_trained(objective.network)
    projection = 4 * PROJECTION_COLUMNS * d
    # An example has its gradient, by name, flattened and projected, and its activations.
    activations = len(noise) * activation_bytes(objective, examples, noise)
    example = 12 * d + ACTIVATION_COPIES * activations
    needed = projection + example
    allowed = f"at least {needed / 2**30:.2f} for this network and num_samples in traker"
    require(needed <= memory, "compute.gradient_memory_gib", memory_gib, allowed)
    return min(LARGEST_BATCH, int((memory - projection) // example))
