"""EK-FAC: the generalized Gauss–Newton matrix G of the denoising loss in a Kronecker eigenbasis.

George et al. 2018 ("EKFAC"); for diffusion models Mlodozeniec et al. 2025, with pseudo-targets
N(ε_θ, I). Weight and bias of a layer are one matrix [out, in + 1].

    a  inputs, with a 1 for the bias (patches, for a convolution)   [B, positions, in + 1]
    b  gradient of the pseudo-target's loss at the outputs          [B, positions, out]
    bᵀa is the gradient of one example at one noise sample
    A = E[aᵀa] = Q_A … Q_Aᵀ,  B = E[bᵀb] = Q_B … Q_Bᵀ,  Λ = E[(Q_Bᵀ bᵀa Q_A)²]

Only Linear, Conv2d and Embedding layers count, and with them adaptive normalizations; the
parameters of others (normalizations) are held fixed. The matrix of an embedding is its weight: a is
the gradient at its outputs, b the unit vector of the index, and B has the frequencies of indices.

The stage `make_ekfac` writes ekfac.safetensors: the bases and the eigenvalues of a checkpoint.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from journey.attribution.gradient import EKFACFactors
from journey.attribution.gradients import layer_sides, layer_signals
from journey.attribution.outputs import NoiseSamples, sample_noise
from journey.diffusion.network import Predict, load_denoiser, num_trained, trained_parameters
from journey.diffusion.trajectories import train_examples
from journey.engine.metrics import track
from journey.engine.seeding import generator
from journey.engine.workspace import Workspace
from journey.pipeline.examples import Examples
from journey.pipeline.schedule import Schedule, add_noise

EKFAC_FILE = "ekfac.safetensors"
BATCHES_AT_ONCE = 4  # batches that an accelerator has at once

EKFACBatch = tuple[Tensor, NoiseSamples, Tensor, Tensor | None]
"""clean examples [B, …]; a noise sample each; pseudo-target − ε_θ ~ N(0, I) [B, …]; conditions"""


@dataclass(frozen=True)
class EKFACLayer:
    """The place of a layer among all parameters, and its eigenbasis."""

    weight: slice
    bias: slice | None
    in_basis: Tensor  # Q_A [in + 1, in + 1]
    out_basis: Tensor  # Q_B [out, out]

    def rotate(self, a: Tensor, b: Tensor) -> Tensor:
        """Return Q_Bᵀ bᵀa Q_A of every example, in the cheaper order. [B, out, in + 1]"""
        if a.shape[1] < b.shape[2]:  # fewer positions than outputs
            return (b @ self.out_basis).mT @ (a @ self.in_basis)
        return self.out_basis.T @ (b.mT @ a) @ self.in_basis

    def matrix(self, flat: Tensor) -> Tensor:
        """Return the layer's part of values of all parameters. [B, d] → [B, out, in + 1]"""
        weight = flat[:, self.weight].unflatten(1, (len(self.out_basis), -1))
        return weight if self.bias is None else torch.cat([weight, flat[:, self.bias, None]], 2)

    def write(self, flat: Tensor, matrix: Tensor) -> None:
        """Write the layer's part into values of all parameters. [B, out, in + 1] → [B, d]"""
        if self.bias is not None:
            flat[..., self.bias] = matrix[..., -1]
            matrix = matrix[..., :-1]
        flat[..., self.weight] = matrix.flatten(-2)


@dataclass(frozen=True)
class EKFAC:
    """G = Q diag(Λ) Qᵀ."""

    layers: dict[str, EKFACLayer]  # those that are not held fixed
    eigenvalues: Tensor  # Λ of trained parameters, float32 [d]; infinite where they are held fixed

    def rotate(self, gradients: Tensor, back: bool = False) -> Tensor:
        """Return Qᵀg, or Qg if `back`, of gradients [B, d]."""
        rotated = torch.zeros_like(gradients)
        for layer in self.layers.values():
            q_b, q_a = layer.out_basis, layer.in_basis
            if back:
                q_b, q_a = q_b.T, q_a.T
            layer.write(rotated, q_b.T @ layer.matrix(gradients) @ q_a)
        return rotated

    def damped(self, relative: float) -> Tensor:
        """Return Λ + λ [d]."""
        return self.eigenvalues + self.damping(relative)

    def damping(self, relative: float) -> Tensor:
        """Return λ, given relative to the mean eigenvalue."""
        return relative * self.eigenvalues[self.eigenvalues.isfinite()].mean()


def estimate_ekfac(
    network: nn.Module,
    predict: Predict,
    schedule: Schedule,
    batches: Callable[[], Iterator[EKFACBatch]],
) -> EKFAC:
    """Return the factors of a network; `predict` is the same network as a function.

    One pass over the batches is for the bases, and one for the eigenvalues.
    """
    modules = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding) and module.weight.requires_grad:
            modules[name] = module

    # 1. Q_A and Q_B, of the layers that are used.
    in_sums: dict[str, Tensor] = {}
    out_sums: dict[str, Tensor] = {}
    for name, a, b in _signals(modules, predict, schedule, batches()):
        in_sums[name] = in_sums.get(name, 0) + torch.einsum("npi,npj->ij", a, a)
        out_sums[name] = out_sums.get(name, 0) + torch.einsum("npi,npj->ij", b, b)
    bases = {}
    for name in in_sums:
        bases[name] = (_eigenvectors(in_sums[name]), _eigenvectors(out_sums[name]))
    layers = _layers(network, bases)

    # 2. Λ.
    squares: dict[str, Tensor] = {}
    count: Counter[str] = Counter()
    for name, a, b in _signals(modules, predict, schedule, batches()):
        squares[name] = squares.get(name, 0) + layers[name].rotate(a, b).square().sum(0)
        count[name] += len(a)
    device = next(network.parameters()).device
    eigenvalues = torch.full((num_trained(network),), torch.inf, device=device)
    for name, layer in layers.items():
        layer.write(eigenvalues, squares[name] / count[name])
    return EKFAC(layers, eigenvalues)


def _eigenvectors(symmetric: Tensor) -> Tensor:
    """Return eigenvectors, computed in float64: on the CPU unless the device is known to have it.

    Their signs are fixed by a generic direction: features are projected in this basis, and other
    machines, whose signs may differ, would have other features.
    """
    place = symmetric.device if symmetric.device.type == "cuda" else torch.device("cpu")
    vectors = torch.linalg.eigh(symmetric.to(place).double())[1]
    direction = torch.linspace(1, 2, len(vectors), dtype=torch.float64, device=place)
    vectors = vectors * torch.where(direction @ vectors < 0, -1.0, 1.0)
    return vectors.float().to(symmetric.device)


def _signals(
    modules: dict[str, nn.Linear | nn.Conv2d | nn.Embedding],
    predict: Predict,
    schedule: Schedule,
    batches: Iterator[EKFACBatch],
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, a and b of every layer that is used, for every batch.

    Every use of a layer has positions of its own.
    """
    for batch in batches:
        loss = functools.partial(_pseudo_loss, predict, schedule, batch)
        uses: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, x, delta in layer_signals(modules, loss):
            uses.setdefault(name, []).append((x, delta))
        for name, signals in uses.items():
            layer, sides = modules[name], []
            for x, delta in signals:
                a, b = layer_sides(layer, x.float(), delta.float())
                if getattr(layer, "bias", None) is not None:
                    a = torch.cat([a, a.new_ones(*a.shape[:2], 1)], 2)
                sides.append((a, b))
            a, b = sides[0]
            if len(sides) > 1:
                a, b = (torch.cat(side, 1) for side in zip(*sides, strict=True))
            yield name, a, b


def _pseudo_loss(predict: Predict, schedule: Schedule, batch: EKFACBatch) -> Tensor:
    """Return the sum of losses whose gradient at the prediction is that of pseudo-targets."""
    x0, noise, error, condition = batch
    predicted = predict(add_noise(schedule, x0, noise.t, noise.eps), noise.t, condition)
    # G of a mean over D elements is (2 / D) E[JᵀJ], J the Jacobian of the prediction.
    residual = error * (2 / error[0].numel()) ** 0.5
    return (predicted * residual).sum()


def _layers(network: nn.Module, bases: dict[str, tuple[Tensor, Tensor]]) -> dict[str, EKFACLayer]:
    """Return layers from their bases Q_A and Q_B; parameters are flattened in their order."""
    places: dict[str, slice] = {}
    first = 0
    for name, parameter in trained_parameters(network).items():
        places[name] = slice(first, first + parameter.numel())
        first += parameter.numel()
    layers = {}
    for name, (in_basis, out_basis) in bases.items():
        weight, bias = places[f"{name}.weight"], places.get(f"{name}.bias")
        layers[name] = EKFACLayer(weight, bias, in_basis, out_basis)
    return layers


def save_ekfac(ekfac: EKFAC, path: Path) -> None:
    """Write the bases and eigenvalues as safetensors."""
    tensors = {"eigenvalues": ekfac.eigenvalues}
    for name, layer in ekfac.layers.items():
        tensors[f"in.{name}"] = layer.in_basis.contiguous()
        tensors[f"out.{name}"] = layer.out_basis.contiguous()
    safetensors.torch.save_file(tensors, path)


def load_ekfac(path: Path, network: nn.Module, device: torch.device) -> EKFAC:
    """Return the factors of a network that `save_ekfac` wrote."""
    tensors = safetensors.torch.load_file(path, device=str(device))
    names = [key.removeprefix("in.") for key in tensors if key.startswith("in.")]
    bases = {name: (tensors[f"in.{name}"], tensors[f"out.{name}"]) for name in names}
    return EKFAC(_layers(network, bases), tensors["eigenvalues"])


def ekfac_batches(
    clean: Examples, num_timesteps: int, seed: int, batch_size: int
) -> Iterator[EKFACBatch]:
    """Return batches with every training example once; an accelerator has several joined to one.

    The timesteps of each `batch_size` examples are stratified.
    """
    batches = _stratified_batches(clean, num_timesteps, seed, batch_size)
    return batches if clean.x0.device.type == "cpu" else joined_batches(batches, BATCHES_AT_ONCE)


def _stratified_batches(
    clean: Examples, num_timesteps: int, seed: int, batch_size: int
) -> Iterator[EKFACBatch]:
    device = clean.x0.device
    for first in range(0, len(clean), batch_size):
        batch = clean[first : first + batch_size]
        timesteps, purpose = (0, num_timesteps), f"curvature {first}"
        noise = sample_noise(timesteps, len(batch), clean.shape, seed, purpose).to(device)
        random = generator(seed, "pseudo-targets", first)
        error = torch.randn(noise.eps.shape, generator=random).to(device)
        x0 = batch.x0
        if batch.deviation is not None:
            random = generator(seed, "curvature latents", first)
            x0 = x0 + batch.deviation * torch.randn(x0.shape, generator=random).to(device)
        yield x0, noise, error, None if batch.condition is None else batch.condition[:, 0]


def joined_batches(batches: Iterator[EKFACBatch], count: int) -> Iterator[EKFACBatch]:
    """Yield the same examples, noise samples and pseudo-targets in batches of up to `count`."""
    while several := list(itertools.islice(batches, count)):
        x0, noise, errors, conditions = zip(*several, strict=True)
        pairs = NoiseSamples(torch.cat([n.t for n in noise]), torch.cat([n.eps for n in noise]))
        condition = None if conditions[0] is None else torch.cat(conditions)
        yield torch.cat(x0), pairs, torch.cat(errors), condition


def make_ekfac(spec: EKFACFactors, partial: Path, workspace: Workspace) -> dict[str, int]:
    """Estimate the EK-FAC factors of a checkpoint from one noise sample per training image.

    Returns:
        The number of gradients.

    Raises:
        FloatingPointError: If an eigenvalue is not finite.
    """
    denoiser = load_denoiser(spec.checkpoint, workspace, precision=spec.precision)
    schedule = denoiser.schedule
    clean = train_examples(spec.checkpoint, workspace).to(denoiser.device)
    ekfac = estimate_ekfac(
        denoiser.network,
        denoiser.predict,
        schedule,
        lambda: ekfac_batches(clean, schedule.num_timesteps, spec.seed, spec.batch_size),
    )
    fixed = ekfac.eigenvalues.isinf()
    free = ekfac.eigenvalues[~fixed]
    if not bool(free.isfinite().all()):
        raise FloatingPointError("an eigenvalue of the Gauss–Newton matrix is not finite")
    save_ekfac(ekfac, partial / EKFAC_FILE)
    with track(spec, partial, workspace) as log:
        log(0, mean_eigenvalue=float(free.mean()), held_fixed=int(fixed.sum()))
    return {"gradients": 2 * len(clean)}
