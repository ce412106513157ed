"""Text-to-image latent diffusion (Rombach et al. 2022): diffusers' `UNet2DConditionModel` on the latents of an autoencoder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from journey.diffusion import unet
from journey.diffusion.text import LazyCaptions, TextEncoder
from journey.engine.checks import require, require_count
from journey.pipeline.interfaces import Autoencoder, Images, Latents, Model
from journey.pipeline.pretrained import files_hash, locate, locate_checkpoint
from journey.pipeline.settings import Autoencoding, Prediction

if TYPE_CHECKING:
    import numpy as np
    import torch

    from journey.engine.store import Artifact
    from journey.pipeline.examples import Examples
    from journey.pipeline.images import ImageSet
    from journey.pipeline.schedule import Schedule


TOGETHER = 64  # pictures that are decoded at once


PARTS = ("vae", "text_encoder", "tokenizer")  # of a pipeline as diffusers saves it


@dataclass
class LatentDiffusion(Model):
    name: ClassVar[str] = "ldm"
    pixels: ClassVar[bool] = False
    reads_text: ClassVar[bool] = True
    pretrained: str = ""  # a pipeline whose autoencoder and text encoder are used; none: an autoencoder of the images, and MiniLM
    autoencoder: Autoencoding = field(
        default_factory=Autoencoding
    )  # unless there is a pretrained one
    samples_latents: bool = (
        True  # every draw sees another sample of an image's latents, or their mean
    )
    text_length: int = 12  # tokens
    context_width: int = 384  # of a token's state
    prediction: Prediction = Prediction.noise
    block_out_channels: list[int] = field(default_factory=lambda: [48, 64])
    layers_per_block: int = 1
    attention_blocks: list[int] = field(
        default_factory=lambda: [1]
    )  # which down blocks (and their mirrors) attend
    attention_heads: int = 8
    norm_num_groups: int = 8

    @property
    def label(self) -> str:
        return "ldm" + unet.label(
            self.block_out_channels, self.layers_per_block, self.attention_blocks
        )

    def check(self, where: str) -> None:
        require_count(f"{where}.num_timesteps", self.num_timesteps)
        for name in self.checkpoints:
            locate_checkpoint(name)
        self.autoencoder.check(f"{where}.autoencoder")
        blocks = (
            self.block_out_channels,
            self.norm_num_groups,
            self.layers_per_block,
            self.attention_blocks,
        )
        unet.check(where, *blocks)
        heads = self.attention_heads
        require_count(f"{where}.attention_heads", heads, most=1024)
        divisible = all(c % heads == 0 for c in self.block_out_channels)
        require(
            divisible,
            f"{where}.block_out_channels",
            self.block_out_channels,
            f"multiples of attention_heads={heads}",
        )
        require_count(f"{where}.text_length", self.text_length, least=3, most=512)

    def _pipeline(self) -> Path:
        return locate("model.pretrained", self.pretrained, "a pipeline as diffusers saves it")

    def _text_encoder(self) -> TextEncoder:
        if not self.pretrained:
            return TextEncoder.minilm(self.text_length)
        pipeline = self._pipeline()
        missing = [part for part in PARTS if not (pipeline / part).is_dir()]
        allowed = f"a pipeline with {', '.join(PARTS)}; {', '.join(missing)} missing"
        require(not missing, "model.pretrained", self.pretrained, allowed)
        return TextEncoder.of_pipeline(pipeline, self.text_length)

    def _latents(self) -> tuple[int, int]:
        """Their channels, and how many pixels one has along a side."""
        of = vars(self.autoencoder)
        if self.pretrained:
            of = json.loads((self._pipeline() / "vae" / "config.json").read_text())
        return of["latent_channels"], 2 ** (len(of["block_out_channels"]) - 1)

    def fits(self, shape: tuple[int, int, int]) -> None:
        """Raises: ConfigError, also if the encoders are not on this machine, or the text encoder is of another width."""
        width = self._text_encoder().width
        allowed = f"{width}: so wide are the text encoder's states"
        require(width == self.context_width, "model.context_width", self.context_width, allowed)
        _, side = self._latents()
        whole = all(pixels % side == 0 for pixels in shape[1:])
        require(
            whole,
            "model",
            self.label,
            f"used with images whose sides are multiples of {side}, not {shape[1]}×{shape[2]}",
        )
        unet.check_sides(self.block_out_channels, "latents", (shape[1] // side, shape[2] // side))

    def example_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        channels, side = self._latents()
        return channels, shape[1] // side, shape[2] // side

    def multiply_adds(self, shape: tuple[int, int, int]) -> float:
        _, height, width = self.example_shape(shape)
        return unet.multiply_adds(self.block_out_channels, self.layers_per_block, height * width)

    # ----------------------------------------------------------------------------------------------- encoders

    def encoded(self, images: Images, seed: int) -> Latents:
        text = self._text_encoder()
        own = Autoencoder(images, self.autoencoder, seed) if not self.pretrained else None
        others = (
            {text.path, text.tokenizer_path} if own else {self._pipeline() / part for part in PARTS}
        )
        return Latents(images, files_hash(*sorted(others)), self.text_length, own, self.pretrained)

    def encode(self, images: "ImageSet", encoded: "Artifact | None" = None) -> "Examples":
        import numpy as np
        import torch

        from journey.pipeline.examples import Examples

        def tensor(name: str) -> torch.Tensor:
            return torch.from_numpy(np.array(encoded.array(f"{name}.npy")))

        deviation = tensor("deviation") if self.samples_latents else None
        kept = (encoded.path / "context.npy").exists()
        context = (
            tensor("context") if kept else LazyCaptions(tensor("tokens"), self._text_encoder())
        )
        return Examples(tensor("mean"), deviation, context)

    def decode(self, x0: "np.ndarray", encoded: "Artifact | None" = None) -> "np.ndarray":
        import numpy as np
        import torch

        from journey.diffusion import autoencoder

        network = autoencoder.load(encoded.path / "vae", torch.device("cpu"))
        parts = [
            autoencoder.decode(network, some).numpy()
            for some in torch.from_numpy(np.array(x0)).split(TOGETHER)
        ]
        return np.concatenate(parts)

    def check_prompts(self, where: str, prompts: Sequence[str]) -> None:
        encoder = self._text_encoder()
        for prompt in prompts:
            cut = encoder.cut(prompt)
            allowed = (
                f"at most model.text_length={self.text_length} tokens long: {cut!r} would be cut"
            )
            require(not cut, where, repr(prompt), allowed)

    def read(self, texts: Sequence[str]) -> "torch.Tensor":
        import torch

        return self._text_encoder().states(texts, torch.device("cpu"))

    # ---------------------------------------------------------------------------------------------- the network

    def build(self, shape: tuple[int, ...]) -> "torch.nn.Module":
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        channels, height, width = shape
        attends = [i in self.attention_blocks for i in range(len(self.block_out_channels))]
        return UNet2DConditionModel(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(self.block_out_channels),
            layers_per_block=self.layers_per_block,
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)
            ),
            cross_attention_dim=self.context_width,
            attention_head_dim=self.attention_heads,  # diffusers' name for their number
            norm_num_groups=self.norm_num_groups,
        )

    def load(self, path: Path, device: "torch.device") -> "torch.nn.Module":
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        network = UNet2DConditionModel.from_pretrained(
            path, low_cpu_mem_usage=False, local_files_only=True
        )
        return network.to(device).eval()

    def schedule(self, device: "torch.device") -> "Schedule":
        from journey.diffusion.schedule import scaled_linear_schedule

        return scaled_linear_schedule(self.num_timesteps, self.prediction, device)
