"""Pixel-space DDPMs (Ho et al. 2020): diffusers' `UNet2DModel` predicts the noise."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from journey.diffusion import unet
from journey.engine.checks import require
from journey.engine.spec import omitted_default
from journey.pipeline.interfaces import Model

if TYPE_CHECKING:
    import torch

    from journey.pipeline.schedule import Schedule


@dataclass
class DDPM(Model):
    """A DDPM of pixels. `unet.UNetSettings` describes the settings of its U-Net."""

    name: ClassVar[str] = "ddpm"
    block_out_channels: list[int] = field(default_factory=lambda: [16, 32])
    layers_per_block: int = 1
    attention_blocks: list[int] = field(default_factory=list)
    mid_block_attention: bool = False  # between the way down and the way up
    norm_num_groups: int = 8
    dropout: float = omitted_default(0.0)  # probability, in training

    @property
    def label(self) -> str:
        """Return the label of the U-Net, with `m` if its middle block has attention."""
        return f"ddpm{unet.label(self)}" + "m" * self.mid_block_attention

    def check(self, where: str) -> None:
        """Check the settings. Raises ConfigError."""
        Model.check(self, where)
        unet.check(where, self)
        require(0 <= self.dropout < 1, f"{where}.dropout", self.dropout, "in [0, 1)")

    def fits(self, shape: tuple[int, int, int]) -> None:
        """Check that images [C, H, W] can be halved at every level. Raises ConfigError."""
        unet.check_sides(self, "images", shape[1:])

    def multiply_adds(self, shape: tuple[int, int, int]) -> float:
        """Return the approximate multiply-adds of one forward pass of one image."""
        return unet.multiply_adds(self, shape[1] * shape[2])

    def build(self, shape: tuple[int, ...]) -> "torch.nn.Module":
        """Return an untrained network for images of shape [C, H, W]."""
        from diffusers.models.unets.unet_2d import UNet2DModel

        return UNet2DModel(
            **unet.arguments(self, shape, "Attn"),
            add_attention=self.mid_block_attention,
            dropout=self.dropout,
        )

    def load(self, path: Path, device: "torch.device") -> "torch.nn.Module":
        """Return a trained network in evaluation mode."""
        from diffusers.models.unets.unet_2d import UNet2DModel

        network = UNet2DModel.from_pretrained(path, low_cpu_mem_usage=False, local_files_only=True)
        return network.to(device).eval()

    def schedule(self, device: "torch.device") -> "Schedule":
        """Return the linear schedule; estimates of x_0 are clipped to −1…1."""
        from journey.diffusion.schedule import linear_schedule

        return linear_schedule(self.num_timesteps, clip=True, device=device)
