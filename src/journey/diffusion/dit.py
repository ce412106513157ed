"""Diffusion transformers of pixels (Peebles and Xie 2023): diffusers' `DiTTransformer2DModel`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from journey.diffusion import weights
from journey.engine.checks import require, require_count
from journey.engine.spec import omitted_default
from journey.pipeline.interfaces import Model
from journey.pipeline.schedule import NoiseSchedule
from journey.pipeline.settings import LoRA, Prediction

if TYPE_CHECKING:
    import torch

    from journey.pipeline.schedule import Schedule


@dataclass
class DiT(Model):
    """A transformer whose normalization follows the timestep and the class (adaLN-Zero).

    Settings have the names of `DiTTransformer2DModel`. Its table of classes always has one more
    row, of no class. Without classes, all images are of one.
    """

    name: ClassVar[str] = "dit"
    network: ClassVar[str] = "DiTTransformer2DModel"
    # Classes that condition the network: all those of the dataset, or 0.
    num_classes: int = omitted_default(0)
    prediction: Prediction = omitted_default(Prediction.noise)
    noise_schedule: NoiseSchedule = omitted_default(NoiseSchedule())
    patch_size: int = 2  # pixels along a side of a token
    num_layers: int = 4  # transformer blocks
    num_attention_heads: int = 4  # of each block
    attention_head_dim: int = 12  # channels of a head

    @property
    def label(self) -> str:
        """Return the width, the layers, the patch size and the classes, as in `dit48x4p2c10`."""
        classes = f"c{self.num_classes}" if self.num_classes else ""
        return f"dit{self.width}x{self.num_layers}p{self.patch_size}{classes}"

    @property
    def width(self) -> int:
        """Return the channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    def check(self, where: str) -> None:
        Model.check(self, where)
        require_count(f"{where}.num_classes", self.num_classes, least=0)
        require_count(f"{where}.patch_size", self.patch_size, most=64)
        require_count(f"{where}.num_layers", self.num_layers, most=256)
        heads, dim = self.num_attention_heads, self.attention_head_dim
        require_count(f"{where}.num_attention_heads", heads, most=1024)
        allowed = f"such that num_attention_heads={heads} times it is a multiple of 4 up to {2**14}"
        valid = dim > 0 and heads * dim <= 2**14 and heads * dim % 4 == 0  # sines of two axes
        require(valid, f"{where}.attention_head_dim", dim, allowed)
        self.noise_schedule.check(f"{where}.noise_schedule", NoiseSchedule(), self.prediction)

    def check_released(self, setting: str, names: Sequence[str], lora: LoRA | None = None) -> None:
        weights.check_files(setting, self, names, lora)

    def fits(self, shape: tuple[int, int, int]) -> None:
        _, height, width = shape
        allowed = f"used with square images, not {height}×{width}"
        require(height == width, "model", self.label, allowed)
        allowed = f"a divisor of {height}, the side of the images"
        require(height % self.patch_size == 0, "model.patch_size", self.patch_size, allowed)
        weights.check_sample_size(self, height)

    def first_parameter(self) -> tuple[str, int]:
        return "pos_embed.proj.weight", self.width

    @property
    def is_flow(self) -> bool:
        return self.prediction is Prediction.flow

    def multiply_adds(self, shape: tuple[int, int, int]) -> float:
        """Return those of the projections and of attention; a layer has 12 matrices of width²."""
        tokens = shape[1] * shape[2] / self.patch_size**2
        return self.num_layers * tokens * self.width * (12 * self.width + 2 * tokens)

    def network_config(self, shape: tuple[int, ...]) -> dict[str, object]:
        """Return the arguments of `DiTTransformer2DModel` for images of shape [C, H, H]."""
        return {
            "sample_size": shape[1],
            "in_channels": shape[0],
            "out_channels": shape[0],
            "patch_size": self.patch_size,
            "num_layers": self.num_layers,
            "num_attention_heads": self.num_attention_heads,
            "attention_head_dim": self.attention_head_dim,
            "num_embeds_ada_norm": max(1, self.num_classes),
        }

    def build(self, shape: tuple[int, ...]) -> "torch.nn.Module":
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
        from torch import nn

        network = DiTTransformer2DModel(**self.network_config(shape))
        # At first, every block is the identity, and the prediction is zero (Section 3.2).
        for name, layer in network.named_modules():
            if name.endswith((".norm1.linear", "proj_out_1", "proj_out_2")):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        return self._prepared(network)

    def load(self, path: Path, device: "torch.device") -> "torch.nn.Module":
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        network = DiTTransformer2DModel.from_pretrained(
            path, low_cpu_mem_usage=False, local_files_only=True
        )
        return self._prepared(network).to(device).eval()

    def _prepared(self, network: "torch.nn.Module") -> "torch.nn.Module":
        """Return a network that drops no class by itself and, without classes, needs none."""
        from diffusers.models.embeddings import LabelEmbedding

        for module in network.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0  # it would drop classes in each layer separately
        if not self.num_classes:
            network.register_forward_pre_hook(_with_the_only_class)
        return network

    def schedule(self, device: "torch.device") -> "Schedule":
        """Return the schedule; by default, linear, with estimates of x_0 clipped to −1…1."""
        from journey.diffusion.schedule import make_schedule

        return make_schedule(self.noise_schedule, self.num_timesteps, self.prediction, device)


def _with_the_only_class(
    network: "torch.nn.Module", inputs: tuple["torch.Tensor", ...]
) -> tuple["torch.Tensor", ...]:
    """Return x_t, t and, if no classes are given, the class 0 of every example."""
    import torch

    return inputs if len(inputs) > 2 else (*inputs, torch.zeros_like(inputs[1]))
