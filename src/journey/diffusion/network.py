"""The denoiser: any architecture, with any condition, as one function.

x_t        noisy examples [B, …];  t  their timesteps [B]
condition  of each example: text states [B, L, E] or a class label [B]; None: there is none
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from journey.diffusion.lora import add_adapters, load_adapters
from journey.engine.checks import ConfigError
from journey.engine.workspace import Compute, Precision, Workspace, get
from journey.pipeline.interfaces import IntermediateCheckpoint, Model, Train
from journey.pipeline.schedule import Schedule

CPU_MEMORY_GIB = 2.0  # for gradients, by default
GPU_MEMORY_SHARE = 0.8  # of the free memory

Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_t, t, condition) → the quantity that the schedule's `prediction` names [B, …]"""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance."""

    scale: float  # 1 is the conditional prediction, 0 the unconditional one
    null_condition: Tensor  # of no text [L, E], or of no class []


@dataclass(frozen=True)
class Denoiser:
    """A trained network on its device, as a function, with the schedule that it was trained on."""

    network: nn.Module  # in evaluation mode
    predict: Predict  # the network as a function, guided if there is guidance
    schedule: Schedule
    guidance: Guidance | None
    device: torch.device


def load_denoiser(
    checkpoint: Train | IntermediateCheckpoint,
    workspace: Workspace,
    guidance: float = 1.0,
    precision: Precision | None = None,
) -> Denoiser:
    """Return the denoiser of a checkpoint, which is trained now if the store does not have it.

    Args:
        checkpoint: The trained model.
        workspace: The store, and the device to compute on.
        guidance: Scale of classifier-free guidance; 1 is the conditional prediction.
        precision: Precision of the forward passes; by default, that of the training.
    """
    device, model = get_device(workspace.compute), checkpoint.training_run.model
    network = load_network(checkpoint, workspace, device)
    guide = get_guidance(model, guidance, device)
    predict = bind(network, precision or checkpoint.training_run.precision, guidance=guide)
    return Denoiser(network, predict, model.schedule(device), guide, device)


def load_network(
    checkpoint: Train | IntermediateCheckpoint, workspace: Workspace, device: torch.device
) -> nn.Module:
    """Return the network of a checkpoint, in evaluation mode; with LoRA, only that is trained."""
    run, path = checkpoint.training_run, get(checkpoint, workspace).path
    if not run.training.lora.rank:
        return run.model.load(path, device)
    assert run.start is not None, "LoRA changes a trained network"
    network = run.model.load(get(run.start, workspace).path, device)
    add_adapters(network, run.training.lora)
    load_adapters(network, path)
    return network.eval()


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a network that are not frozen, by name, in their order."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def num_trained(network: nn.Module) -> int:
    """Return d, the number of trained parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def bind(
    network: nn.Module,
    precision: Precision,
    parameters: dict[str, Tensor] | None = None,
    guidance: Guidance | None = None,
) -> Predict:
    """Return a network of diffusers as a function, with other parameters by name if given.

    With bf16, it runs under autocast; outputs have the dtype of x_t. Guidance needs a condition.
    A call sets how products of float32 are computed on CUDA, for its backward pass, too.
    """

    def predict(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        if x_t.device.type != "cpu":
            use_tf32(precision is Precision.tf32)
        inputs = (x_t, t) if condition is None else (x_t, t, condition)
        half = precision is Precision.bf16
        with torch.autocast(x_t.device.type, dtype=torch.bfloat16, enabled=half):
            if parameters is None:
                return network(*inputs, return_dict=False)[0].to(x_t.dtype)
            options = {"return_dict": False}
            outputs = torch.func.functional_call(network, parameters, inputs, options)
            return outputs[0].to(x_t.dtype)

    return predict if guidance is None else guided(predict, guidance)


def guided(predict: Predict, guidance: Guidance) -> Predict:
    """Return the guided prediction (Ho and Salimans 2022, Equation 6)."""

    def predict_guided(x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None, "guidance needs a condition"
        conditions = torch.cat([guidance.null_condition.expand_as(condition), condition])
        predicted = predict(torch.cat([x_t, x_t]), torch.cat([t, t]), conditions)
        unconditional, conditional = predicted.chunk(2)
        return unconditional + guidance.scale * (conditional - unconditional)

    return predict_guided


def get_guidance(model: Model, scale: float, device: torch.device) -> Guidance | None:
    """Return the guidance of a scale, or None at scale 1, which needs none."""
    return None if scale == 1 else Guidance(scale, model.null_condition().to(device))


def get_device(compute: Compute) -> torch.device:
    """Return the device to compute on. Raises ConfigError if this machine does not have it."""
    require_device(f"compute.device={compute.device}", compute.device)
    if compute.device != "cpu":
        use_tf32(False)
    return torch.device(compute.device)


def use_tf32(tf32: bool) -> None:
    """Let CUDA compute products of float32 matrices, and convolutions, in TF32 or in float32.

    By default, PyTorch uses TF32 in convolutions, but not in products of matrices.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    # Since torch 2.9 there is a second interface. Where the two differ, reading one raises.
    if hasattr(matmul, "fp32_precision"):
        for kind in (matmul, cudnn.conv, cudnn.rnn):  # type: ignore[attr-defined]
            kind.fp32_precision = "tf32" if tf32 else "ieee"  # type: ignore[union-attr]


def gradient_memory(compute: Compute, device: torch.device) -> float:
    """Return the memory for gradients in GiB: that of the setting, or what suits a device.

    The default on CUDA is a power of two, so that the sizes of batches, and with them rounding, do
    not follow small changes of the free memory.
    """
    if compute.gradient_memory_gib is not None:
        return compute.gradient_memory_gib
    if device.type != "cuda":
        return CPU_MEMORY_GIB
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    most = GPU_MEMORY_SHARE * free / compute.workers_per_device / 2**30
    return 2.0 ** math.floor(math.log2(most))


def require_device(setting: str, name: str) -> None:
    """Check that this machine has a device, which a setting `field=value` names.

    Raises:
        ConfigError: It does not.
    """
    device = torch.device(name)
    if device.type == "cpu":
        return
    backend = torch.get_device_module(device)
    if not (backend.is_available() and (device.index or 0) < backend.device_count()):
        raise ConfigError(f"{setting}: not available on this machine; use cpu")


def copies_ahead(device: torch.device) -> bool:
    """Return whether the host need not wait for a copy of pinned memory to a device."""
    return device.type not in ("cpu", "mps")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device, without waiting for the copy if that is possible."""
    if copies_ahead(device) and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
