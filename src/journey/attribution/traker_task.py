"""Our output function in the form that `trak.TRAKer` asks for."""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from trak.modelout_functions import AbstractModelOutput

from journey.attribution.output import Draws, output
from journey.config.groups import Precision
from journey.diffusion.examples import Examples
from journey.diffusion.network import bind
from journey.diffusion.schedule import Schedule


class LossOutput(AbstractModelOutput):
    """f(x0; θ), the mean of the denoising loss over draws, which are those of whatever examples are asked about next.

    parts: what of `Examples` a batch of TRAKer's holds, in this order.
    """

    def __init__(self, schedule: Schedule, draws: Draws, parts: tuple[str, ...] = ("x0",)) -> None:
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
            return output(bind(network, Precision.fp32, weights), self.schedule, example, self.draws)

    def get_out_to_loss_grad(
        self, network: nn.Module, weights: dict[str, Tensor], buffers: dict[str, Tensor], batch: list[Tensor]
    ) -> Tensor:
        """Q of TRAK, which is 1: the output is the loss. [B, 1]"""
        return torch.ones(len(batch[0]), 1)
