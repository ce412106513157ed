"""Pixel-space DDPMs: diffusers' `UNet2DModel`, trained to predict the noise on a linear schedule (Ho et al. 2020)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from journey.diffusion import unet
from journey.engine.checks import require, require_count
from journey.engine.spec import omitted_default
from journey.pipeline.interfaces import Model
from journey.pipeline.pretrained import locate_checkpoint

if TYPE_CHECKING:
    import numpy as np
    import torch

    from journey.engine.store import Artifact
    from journey.pipeline.examples import Examples
    from journey.pipeline.images import ImageSet
    from journey.pipeline.schedule import Schedule


@dataclass
class DDPM(Model):
    name: ClassVar[str] = "ddpm"
    pixels: ClassVar[bool] = True
    block_out_channels: list[int] = field(default_factory=lambda: [16, 32])
    layers_per_block: int = 1
    attention_blocks: list[int] = field(
        default_factory=list
    )  # which down blocks (and their mirrors) attend
    mid_block_attention: bool = False
    norm_num_groups: int = 8
    dropout: float = omitted_default(0.0)  # in training

    @property
    def label(self) -> str:
        """That of the U-Net, and whether its middle attends."""
        blocks = unet.label(self.block_out_channels, self.layers_per_block, self.attention_blocks)
        return f"ddpm{blocks}" + "m" * self.mid_block_attention

    def check(self, where: str) -> None:
        require_count(f"{where}.num_timesteps", self.num_timesteps)
        for name in self.checkpoints:
            locate_checkpoint(name)
        blocks = (
            self.block_out_channels,
            self.norm_num_groups,
            self.layers_per_block,
            self.attention_blocks,
        )
        unet.check(where, *blocks)
        require(0 <= self.dropout < 1, f"{where}.dropout", self.dropout, "in [0, 1)")

    def fits(self, shape: tuple[int, int, int]) -> None:
        unet.check_sides(self.block_out_channels, "images", shape[1:])

    def example_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        return shape

    def multiply_adds(self, shape: tuple[int, int, int]) -> float:
        return unet.multiply_adds(
            self.block_out_channels, self.layers_per_block, shape[1] * shape[2]
        )

    def encode(self, images: "ImageSet", encoded: "Artifact | None" = None) -> "Examples":
        from journey.pipeline.examples import Examples
        from journey.pipeline.images import as_pixels

        return Examples(as_pixels(images.images))

    def decode(self, x0: "np.ndarray", encoded: "Artifact | None" = None) -> "np.ndarray":
        return x0

    def build(self, shape: tuple[int, ...]) -> "torch.nn.Module":
        from diffusers.models.unets.unet_2d import UNet2DModel

        channels, height, width = shape
        attends = [i in self.attention_blocks for i in range(len(self.block_out_channels))]
        return UNet2DModel(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(self.block_out_channels),
            layers_per_block=self.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            add_attention=self.mid_block_attention,
            norm_num_groups=self.norm_num_groups,
            dropout=self.dropout,
        )

    def load(self, path: Path, device: "torch.device") -> "torch.nn.Module":
        from diffusers.models.unets.unet_2d import UNet2DModel

        network = UNet2DModel.from_pretrained(path, low_cpu_mem_usage=False, local_files_only=True)
        return network.to(device).eval()

    def schedule(self, device: "torch.device") -> "Schedule":
        from journey.diffusion.schedule import linear_schedule

        return linear_schedule(self.num_timesteps, clip=True, device=device)
