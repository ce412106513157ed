"""EK-FAC: the generalised Gauss–Newton matrix G of the denoising loss, diagonal in a Kronecker eigenbasis.

George et al. 2018 ("EKFAC"); Mlodozeniec et al. 2025 for diffusion models, with pseudo-targets N(ε_θ, I).

Of a layer with weight and bias as one matrix [out, in + 1]:
    a  inputs, with a 1 for the bias (patches, of a convolution)  [positions, in + 1]
    b  gradient at its outputs of the loss of a pseudo-target     [positions, out]
    the gradient of one example and draw is bᵀa; A = E[aᵀa] = Q_A … Q_Aᵀ, B = E[bᵀb] = Q_B … Q_Bᵀ;
    eigenvalues Λ = E[(Q_Bᵀ bᵀa Q_A)²]

Layers that are no Linear or Conv2d (normalisations) are held fixed: their directions count nothing.


The Gauss–Newton matrix at a model. Payload: curvature.safetensors."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from journey.attribution.gradient import EKFACFactors
from journey.attribution.outputs import NoiseSamples, sample_noise
from journey.diffusion import network
from journey.diffusion.network import Predict
from journey.diffusion.trajectories import train_examples
from journey.engine.metrics import track
from journey.engine.seeding import generator
from journey.engine.workspace import Workspace, get
from journey.pipeline.examples import Examples
from journey.pipeline.schedule import Schedule, add_noise

EKFACBatch = tuple[Tensor, NoiseSamples, Tensor, Tensor | None]
"""clean examples [B, …]; a draw for each; what a pseudo-target is off by, N(0, I) [B, …]; contexts"""


@dataclass(frozen=True)
class EKFACLayer:
    """Where the parameters of a layer are among all parameters, and its eigenbasis."""

    weight: slice
    bias: slice | None
    in_basis: Tensor  # Q_A [in + 1, in + 1]
    out_basis: Tensor  # Q_B [out, out]

    def rotate(self, a: Tensor, b: Tensor) -> Tensor:
        """Q_Bᵀ bᵀa Q_A of every example, in the order that is cheaper. [B, out, in + 1]"""
        if a.shape[1] < b.shape[2]:  # fewer positions than outputs
            return (b @ self.out_basis).mT @ (a @ self.in_basis)
        return self.out_basis.T @ (b.mT @ a) @ self.in_basis

    def matrix(self, flat: Tensor) -> Tensor:
        """Its part of what is along all parameters [B, d], weight and bias as one matrix. [B, out, in + 1]"""
        weight = flat[:, self.weight].unflatten(1, (len(self.out_basis), -1))
        return weight if self.bias is None else torch.cat([weight, flat[:, self.bias, None]], 2)


@dataclass(frozen=True)
class EKFAC:
    """G = Q diag(Λ) Qᵀ. eigenvalues: of all d parameters, float32 [d]; infinite where the parameter is held fixed."""

    layers: dict[str, EKFACLayer]
    eigenvalues: Tensor

    def rotate(self, gradients: Tensor, back: bool = False) -> Tensor:
        """Qᵀg, or Qg, of gradients [B, d]."""
        rotated = torch.zeros_like(gradients)
        for layer in self.layers.values():
            q_b, q_a = (
                (layer.out_basis.T, layer.in_basis.T) if back else (layer.out_basis, layer.in_basis)
            )
            _put(rotated, layer, q_b.T @ layer.matrix(gradients) @ q_a)
        return rotated

    def damped(self, relative: float) -> Tensor:
        """Λ + λ. [d]"""
        return self.eigenvalues + self.damping(relative)

    def damping(self, relative: float) -> Tensor:
        """λ, from what it is relative to the mean eigenvalue."""
        return relative * self.eigenvalues[self.eigenvalues.isfinite()].mean()


def _put(flat: Tensor, layer: EKFACLayer, matrix: Tensor) -> None:
    """Write a layer's [B, out, in + 1] (or [out, in + 1]) where it belongs in [B, d] (or [d])."""
    if layer.bias is not None:
        flat[..., layer.bias] = matrix[..., -1]
        matrix = matrix[..., :-1]
    flat[..., layer.weight] = matrix.flatten(-2)


def estimate_ekfac(
    network: nn.Module,
    predict: Predict,
    schedule: Schedule,
    batches: Callable[[], Iterator[EKFACBatch]],
) -> EKFAC:
    """Two passes over the same batches: one for the bases, one for the eigenvalues."""
    modules = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    in_sums: dict[str, Tensor] = {}  # of the layers that are used
    out_sums: dict[str, Tensor] = {}
    for name, a, b in _signals(modules, predict, schedule, batches()):
        in_sums[name] = in_sums.get(name, 0) + torch.einsum("npi,npj->ij", a, a)
        out_sums[name] = out_sums.get(name, 0) + torch.einsum("npi,npj->ij", b, b)
    places = _places(network)
    layers = {
        name: EKFACLayer(
            places[f"{name}.weight"],
            places.get(f"{name}.bias"),
            _eigenvectors(in_sums[name]),
            _eigenvectors(out_sums[name]),
        )
        for name in in_sums
    }
    eigenvalues = torch.full(
        (sum(p.numel() for p in network.parameters()),),
        torch.inf,
        device=next(network.parameters()).device,
    )
    squares: dict[str, Tensor] = {}
    count: Counter[str] = Counter()
    for name, a, b in _signals(modules, predict, schedule, batches()):
        squares[name] = squares.get(name, 0) + layers[name].rotate(a, b).square().sum(0)
        count[name] += len(a)
    for name, layer in layers.items():
        _put(eigenvalues, layer, squares[name] / count[name])
    return EKFAC(layers, eigenvalues)


def _eigenvectors(symmetric: Tensor) -> Tensor:
    """In float64, on the CPU, since not every accelerator has it."""
    return torch.linalg.eigh(symmetric.cpu().double())[1].float().to(symmetric.device)


def _signals(
    modules: dict[str, nn.Module],
    predict: Predict,
    schedule: Schedule,
    batches: Iterator[EKFACBatch],
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, a and b of every layer, one after the other, for every batch: [B, positions, in + 1] and [B, positions, out]."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def remember(name: str) -> Callable:
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            inputs[name], outputs[name] = args[0].detach(), out

        return hook

    hooks = [module.register_forward_hook(remember(name)) for name, module in modules.items()]
    try:
        for x0, draws, off, context in batches:
            predicted = predict(add_noise(schedule, x0, draws.t, draws.eps), draws.t, context)
            residual = (
                off * (2 / off[0].numel()) ** 0.5
            )  # G of a mean over D elements is (2 / D) E[JᵀJ]
            gradients = torch.autograd.grad((predicted * residual).sum(), list(outputs.values()))
            for name, b in zip(outputs, gradients, strict=True):
                yield name, _inputs(modules[name], inputs[name]), _positions(modules[name], b)
            inputs.clear()
            outputs.clear()
    finally:
        for hook in hooks:
            hook.remove()


def _inputs(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, nn.Conv2d):
        x = F.unfold(
            x.float(), module.kernel_size, module.dilation, module.padding, module.stride
        ).mT
    else:
        x = x.float().reshape(len(x), -1, x.shape[-1])
    return x if module.bias is None else torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)


def _positions(module: nn.Module, b: Tensor) -> Tensor:
    b = b.float()
    return b.flatten(2).mT if isinstance(module, nn.Conv2d) else b.reshape(len(b), -1, b.shape[-1])


def _places(network: nn.Module) -> dict[str, slice]:
    """Where each parameter is among all, flattened in their order."""
    places, first = {}, 0
    for name, parameter in network.named_parameters():
        places[name] = slice(first, first + parameter.numel())
        first += parameter.numel()
    return places


def save_ekfac(curvature: EKFAC, path: Path) -> None:
    """Write the bases and eigenvalues as safetensors."""
    tensors = {"eigenvalues": curvature.eigenvalues}
    for name, layer in curvature.layers.items():
        tensors |= {
            f"in.{name}": layer.in_basis.contiguous(),
            f"out.{name}": layer.out_basis.contiguous(),
        }
    safetensors.torch.save_file(tensors, path)


def load_ekfac(path: Path, network: nn.Module, device: torch.device) -> EKFAC:
    """What `save` wrote, of this network."""
    tensors, places = safetensors.torch.load_file(path, device=str(device)), _places(network)
    names = [key.removeprefix("in.") for key in tensors if key.startswith("in.")]
    layers = {
        name: EKFACLayer(
            places[f"{name}.weight"],
            places.get(f"{name}.bias"),
            tensors[f"in.{name}"],
            tensors[f"out.{name}"],
        )
        for name in names
    }
    return EKFAC(layers, tensors["eigenvalues"])


EKFAC_FILE = "curvature.safetensors"


def make_ekfac(spec: EKFACFactors, partial: Path, workspace: Workspace) -> dict:
    """Raises: FloatingPointError if an eigenvalue is not finite."""
    device = network.get_device(workspace.compute)
    model = spec.checkpoint.model
    denoiser = model.load(get(spec.checkpoint, workspace).path, device)
    noise_schedule = model.schedule(device)
    clean = train_examples(spec.checkpoint, workspace).to(device)

    predict = network.bind(denoiser, spec.precision)
    drawn = functools.partial(
        ekfac_batches, clean, noise_schedule.num_timesteps, spec.seed, spec.batch_size
    )
    estimated = estimate_ekfac(denoiser, predict, noise_schedule, drawn)
    fixed = estimated.eigenvalues.isinf()
    if not bool(estimated.eigenvalues[~fixed].isfinite().all()):
        raise FloatingPointError("an eigenvalue of the Gauss–Newton matrix is not finite")
    save_ekfac(estimated, partial / EKFAC_FILE)
    with track(spec, partial, workspace) as log:
        log(
            0,
            mean_eigenvalue=float(estimated.eigenvalues[~fixed].mean()),
            held_fixed=int(fixed.sum()),
        )
    return {"gradients": 2 * len(clean)}


def ekfac_batches(
    clean: Examples, num_timesteps: int, seed: int, batch_size: int
) -> Iterator[EKFACBatch]:
    """Every image once. The draws of a batch are stratified, one for each of its images."""
    device = clean.x0.device
    for first in range(0, len(clean), batch_size):
        some = clean[first : first + batch_size]
        draws = sample_noise(
            (0, num_timesteps), len(some), clean.shape, seed, f"curvature {first}"
        ).to(device)
        off = torch.randn(draws.eps.shape, generator=generator(seed, "pseudo-targets", first)).to(
            device
        )
        x0 = some.x0
        if some.deviation is not None:
            x0 = x0 + some.deviation * torch.randn(
                x0.shape, generator=generator(seed, "curvature latents", first)
            ).to(device)
        yield x0, draws, off, None if some.context is None else some.context[:, 0]
