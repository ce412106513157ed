"""Pixel-space DDPMs (Ho et al. 2020): diffusers' `UNet2DModel` predicts the noise."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from journey.diffusion import unet, weights
from journey.engine.checks import require, require_count, require_within
from journey.engine.spec import omitted_default
from journey.pipeline.interfaces import Model
from journey.pipeline.schedule import NoiseSchedule
from journey.pipeline.settings import LoRA, Prediction

if TYPE_CHECKING:
    import torch

    from journey.pipeline.schedule import Schedule


@dataclass
class DDPM(Model):
    """A DDPM of pixels. `unet.UNetSettings` describes the settings of its U-Net.

    Those that cache keys omit at their default have the names and the defaults of `UNet2DModel`.
    """

    name: ClassVar[str] = "ddpm"
    network: ClassVar[str] = "UNet2DModel"
    # Classes that condition the network: all those of the dataset, or 0.
    num_classes: int = omitted_default(0)
    null_class: bool = omitted_default(True)  # one more embedding, of no class, for guidance
    prediction: Prediction = omitted_default(Prediction.noise)
    noise_schedule: NoiseSchedule = omitted_default(NoiseSchedule())
    block_out_channels: list[int] = field(default_factory=lambda: [16, 32])
    layers_per_block: int = 1
    attention_blocks: list[int] = field(default_factory=list)
    mid_block_attention: bool = False  # between the way down and the way up
    norm_num_groups: int = 8
    dropout: float = omitted_default(0.0)  # probability, in training
    attention_head_dim: int | None = omitted_default(8)  # channels of a head; null: all, one head
    downsample_padding: int = omitted_default(1)  # 0: at the right and at the bottom only
    freq_shift: int = omitted_default(0)  # of the frequencies that embed t
    flip_sin_to_cos: bool = omitted_default(True)  # of these embeddings, cosines come first
    norm_eps: float = omitted_default(1e-5)  # of group normalisation

    @property
    def label(self) -> str:
        """Return the label of the U-Net, with `m` for attention in the middle, and classes."""
        classes = f"c{self.num_classes}" if self.num_classes else ""
        return f"ddpm{unet.label(self)}" + "m" * self.mid_block_attention + classes

    def check(self, where: str) -> None:
        Model.check(self, where)
        unet.check(where, self)
        require_count(f"{where}.num_classes", self.num_classes, least=0)
        used, allowed = self.null_class or self.num_classes > 0, "true with num_classes=0"
        require(used, f"{where}.null_class", "false", allowed)
        require(0 <= self.dropout < 1, f"{where}.dropout", self.dropout, "in [0, 1)")
        attending = [self.block_out_channels[level] for level in self.attention_blocks]
        attending += self.block_out_channels[-1:] * self.mid_block_attention
        dim, narrowest = self.attention_head_dim, min(attending, default=2**14)
        valid, allowed = dim is None or 1 <= dim <= narrowest, f"null, or in 1…{narrowest}"
        require(valid, f"{where}.attention_head_dim", dim, allowed)
        require_count(f"{where}.downsample_padding", self.downsample_padding, least=0, most=1)
        require_count(f"{where}.freq_shift", self.freq_shift, least=0, most=1)
        require_within(f"{where}.norm_eps", self.norm_eps, 1e-12, 1)
        self.noise_schedule.check(f"{where}.noise_schedule", NoiseSchedule(), self.prediction)

    def check_released(self, setting: str, names: Sequence[str], lora: LoRA | None = None) -> None:
        weights.check_files(setting, self, names, lora)

    def fits(self, shape: tuple[int, int, int]) -> None:
        unet.check_sides(self, "images", shape[1:])

    @property
    def has_dropout(self) -> bool:
        """Return whether it is trained with dropout."""
        return self.dropout > 0

    def first_parameter(self) -> tuple[str, int]:
        return unet.first_parameter(self)

    @property
    def is_flow(self) -> bool:
        return self.prediction is Prediction.flow

    def multiply_adds(self, shape: tuple[int, int, int]) -> float:
        return unet.multiply_adds(self, shape[1] * shape[2])

    def network_config(self, shape: tuple[int, ...]) -> dict[str, object]:
        """Return the arguments of `UNet2DModel` for images of shape [C, H, W]."""
        return {
            **unet.arguments(self, shape, "Attn"),
            "add_attention": self.mid_block_attention,
            "dropout": self.dropout,
            "attention_head_dim": self.attention_head_dim,
            "downsample_padding": self.downsample_padding,
            "freq_shift": self.freq_shift,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "norm_eps": self.norm_eps,
            "num_class_embeds": self.num_classes + self.null_class if self.num_classes else None,
        }

    def build(self, shape: tuple[int, ...]) -> "torch.nn.Module":
        from diffusers.models.unets.unet_2d import UNet2DModel

        return UNet2DModel(**self.network_config(shape))

    def load(self, path: Path, device: "torch.device") -> "torch.nn.Module":
        from diffusers.models.unets.unet_2d import UNet2DModel

        network = UNet2DModel.from_pretrained(path, low_cpu_mem_usage=False, local_files_only=True)
        return network.to(device).eval()

    def schedule(self, device: "torch.device") -> "Schedule":
        """Return the schedule; by default, linear, with estimates of x_0 clipped to −1…1."""
        from journey.diffusion.schedule import make_schedule

        return make_schedule(self.noise_schedule, self.num_timesteps, self.prediction, device)
