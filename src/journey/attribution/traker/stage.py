"""Our output function in the form that `trak.TRAKer` asks for.

Scores by `trak.TRAKer` under one model. Payload: scores.npy, float32 [damping, step × query, train].

Examples and draws are those of our own featurization, λ in TRAKer's unit is ours on its features. Its projection is
normal on a CPU and Rademacher elsewhere, so another device gives another one, and scores that differ by its noise. An
interrupted run starts anew: TRAKer would continue with whatever weights and seed it is given.
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

from journey.attribution.features import Batch, batches
from journey.attribution.gradient import Featurize
from journey.attribution.gradients import VMAP_COPIES, Objective, activation_bytes
from journey.attribution.kernel import feature_norms, mean_eigenvalue
from journey.attribution.outputs import NoiseSamples, output
from journey.attribution.traker import TrakerScores
from journey.diffusion import network
from journey.diffusion.network import bind
from journey.engine.checks import require
from journey.engine.files import new_array
from journey.engine.metrics import track
from journey.engine.seeding import entropy
from journey.engine.workspace import Precision, Workspace, get
from journey.pipeline.examples import Examples
from journey.pipeline.schedule import Schedule
from journey.pipeline.settings import Output, Projection


class LossOutput(AbstractModelOutput):
    """f(x0; θ), the mean of the denoising loss over draws, which are those of whatever examples are asked about next.

    parts: what of `Examples` a batch of TRAKer's holds, in this order.
    """

    def __init__(
        self, schedule: Schedule, draws: NoiseSamples, parts: tuple[str, ...] = ("x0",)
    ) -> None:
        self.schedule, self.draws, self.parts = schedule, draws, parts

    def get_output(
        self,
        network: nn.Module,
        weights: dict[str, Tensor],
        buffers: dict[str, Tensor],
        *tensors: Tensor,
    ) -> Tensor:
        """Of one example: TRAKer maps over them."""
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
            example = Examples(**dict(zip(self.parts, tensors, strict=True)))
            return output(
                bind(network, Precision.fp32, weights), self.schedule, example, self.draws
            )

    def get_out_to_loss_grad(
        self,
        network: nn.Module,
        weights: dict[str, Tensor],
        buffers: dict[str, Tensor],
        batch: list[Tensor],
    ) -> Tensor:
        """Q of TRAK, which is 1: the output is the loss. [B, 1]"""
        return torch.ones(len(batch[0]), 1)


COPIES = (
    2 * VMAP_COPIES
)  # of activations: torch.func.grad, which TRAKer uses, keeps what second derivatives would need


BLOCK = 100  # columns of its projection that TRAKer has in memory


MOST_TOGETHER = (
    64  # examples: its projector draws its matrix anew for every batch, so many at once pay
)


def make_traker_scores(spec: TrakerScores, partial: Path, workspace: Workspace) -> dict:
    """Raises: ConfigError if TRAKer does not run on the device or in the memory; ValueError if a score is not finite."""
    # Load.
    device = network.get_device(workspace.compute)
    require(
        device.type in ("cpu", "cuda"), "compute.device", device, "cpu or cuda, where traker runs"
    )
    model, key = spec.checkpoint.model, spec.checkpoint.training_seed
    denoiser = model.load(get(spec.checkpoint, workspace).path, device)
    schedule = model.schedule(device)
    of_train, of_queries = asked(spec)
    (train,) = batches(of_train, schedule.num_timesteps, workspace, device)
    queries = batches(of_queries, schedule.num_timesteps, workspace, device)
    size = _batch_size(
        Objective(denoiser, schedule, Precision.fp32), train, workspace.compute.gradient_memory_gib
    )
    scores = new_array(
        partial / "scores.npy", (len(spec.damping), spec.num_queries, len(train.examples))
    )

    # Begin anew.
    store = partial / "trak"
    shutil.rmtree(store, ignore_errors=True)
    denoiser.requires_grad_(
        False
    )  # or the graph of every gradient stays in memory until it is projected
    task = LossOutput(schedule, train.draws)
    new = functools.partial(
        TRAKer, denoiser, task, len(train.examples), store, device="cpu" if device.type == "cpu" else str(device),
        proj_dim=spec.projection_dim, projector_seed=entropy(spec.seed, "traker") % 2**31, use_half_precision=False,
        logging_level=logging.CRITICAL,
    )  # fmt: skip

    # Featurize the training images.
    traker = new()
    traker.load_checkpoint(denoiser.state_dict(), key)
    _ask(traker.featurize, task, train, size)
    norms = feature_norms(traker.saver.current_store["grads"], "training example")
    one = mean_eigenvalue(norms, spec.projection_dim, spec.damping_unit)

    # Score, with every λ.
    with (
        track(spec, partial, workspace) as log,
        contextlib.redirect_stderr(io.StringIO()),
    ):  # from its progress bars
        for i, relative in enumerate(spec.damping):
            traker = new(lambda_reg=relative * one)
            traker.saver.model_ids[key]["is_finalized"] = 0  # or it would keep the λ before
            traker.finalize_features([key])
            if i == 0:
                _score_queries(traker, task, spec, queries, size)
            scores[i] = np.concatenate(
                [traker.finalize_scores(_name(t), [key]).T for t in spec.steps]
            )
            if not np.isfinite(scores[i]).all():
                raise ValueError(
                    f"scores of trak.TRAKer at damping={relative:g} are not finite; a larger one may help"
                )
            log(i, damping=relative, std=float(scores[i].std()))
    scores.flush()
    shutil.rmtree(store)
    return {
        "gradients": spec.num_rows * spec.num_samples,
        "projector": type(traker.projector).__name__,
    }


def asked(spec: TrakerScores) -> tuple[Featurize, Featurize]:
    """What our own stage would be asked for, of training images and of queries: these examples with these draws."""
    of_train = Featurize(
        checkpoint=spec.checkpoint,
        trajectories=None,
        steps=None,
        window=None,
        output=Output.loss,
        normalize=False,
        num_samples=spec.num_samples,
        noise_set=spec.noise_set,
        share_noise=False,
        stratified=spec.stratified,
        antithetic=spec.antithetic,
        precision=Precision.fp32,
        curvature=None,
        damping=(),
        projection=Projection.none,
        projection_dim=0,
        seed=spec.seed,
    )
    return of_train, replace(of_train, trajectories=spec.trajectories, steps=spec.steps)


def _score_queries(
    traker: TRAKer, task: LossOutput, spec: TrakerScores, queries: list[Batch], size: int
) -> None:
    """Gradients of the queries, an experiment of TRAKer's for each step."""
    for t, batch in zip(spec.steps, queries, strict=True):
        traker.start_scoring_checkpoint(
            _name(t), traker.model.state_dict(), spec.checkpoint.training_seed, len(batch.examples)
        )
        _ask(traker.score, task, batch, size)


def _name(t: int) -> str:
    return f"step{t}"


def _ask(deed: Callable, task: LossOutput, batch: Batch, size: int) -> None:
    """`TRAKer.featurize` or `TRAKer.score`, with some examples at a time."""
    task.draws = batch.draws
    task.parts = tuple(name for name, tensor in vars(batch.examples).items() if tensor is not None)
    for first in range(0, len(batch.examples), size):
        some = batch.examples[first : first + size]
        deed([vars(some)[name] for name in task.parts], num_samples=len(some))


def _batch_size(objective: Objective, batch: Batch, memory_gib: float) -> int:
    """How many examples memory holds beside a block of the projection: 12d bytes for the gradient of each, by name and flattened.

    Raises: ConfigError if it does not hold one.
    """
    d = sum(p.numel() for p in objective.network.parameters())
    block = 4 * BLOCK * d
    each = 12 * d + COPIES * len(batch.draws) * activation_bytes(
        objective, batch.examples, batch.draws
    )
    allowed = f"at least {(block + each) / 2**30:.2f} for this network and num_samples in traker"
    require(block + each <= memory_gib * 2**30, "compute.gradient_memory_gib", memory_gib, allowed)
    return min(MOST_TOGETHER, int((memory_gib * 2**30 - block) // each))
