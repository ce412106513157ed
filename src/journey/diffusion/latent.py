"""Text-to-image latent diffusion (Rombach et al. 2022): diffusers' `UNet2DConditionModel`."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from journey.diffusion import unet, weights
from journey.diffusion.encoded import encoded_hash, read_encoded
from journey.diffusion.released import check_encoders, check_encoders_of_network
from journey.diffusion.text import LazyCaptions, TextEncoder
from journey.engine.checks import require, require_count
from journey.engine.spec import omitted_default
from journey.pipeline.interfaces import Autoencoder, Images, Latents, Model
from journey.pipeline.pretrained import files_hash, locate_checkpoint, locate_pipeline
from journey.pipeline.schedule import BetaSchedule, NoiseSchedule
from journey.pipeline.settings import Autoencoding, LoRA, Prediction, Training

if TYPE_CHECKING:
    import numpy as np
    import torch

    from journey.engine.store import Artifact
    from journey.pipeline.examples import Examples
    from journey.pipeline.images import ImageSet
    from journey.pipeline.schedule import Schedule

DECODE_BATCH = 64  # latents that are decoded at once
ENCODERS = ("vae", "text_encoder", "tokenizer")  # folders of a pipeline as diffusers saves it
# That of Rombach et al. 2022; latents have no bounds to clip to.
SCALED_LINEAR = NoiseSchedule(BetaSchedule.scaled_linear, 0.00085, 0.012, clip_sample=False)


@dataclass
class LatentDiffusion(Model):
    """A text-to-image model of latents. `unet.UNetSettings` describes the settings of its U-Net.

    A pretrained pipeline brings the autoencoder and the text encoder. Without one, an autoencoder
    is trained on the images, and MiniLM reads text.
    """

    name: ClassVar[str] = "ldm"
    network: ClassVar[str] = "UNet2DConditionModel"
    pixels: ClassVar[bool] = False
    reads_text: ClassVar[bool] = True
    # A folder, or a name in the hub's cache.
    pretrained: str = field(default="", metadata={"path": True})
    autoencoder: Autoencoding = field(
        default_factory=Autoencoding, metadata={"used_if": {"pretrained": ("",)}}
    )
    # A folder of latents and text states to use in place of those that would be computed here.
    encoded: str = field(default="", metadata={"path": True, "not_in_key": True})
    samples_latents: bool = True  # every training step sees a fresh sample of latents, or the mean
    text_length: int = 12  # L, tokens
    context_width: int = 384  # E, of a token's state
    prediction: Prediction = Prediction.noise
    noise_schedule: NoiseSchedule = omitted_default(SCALED_LINEAR)
    block_out_channels: list[int] = field(default_factory=lambda: [48, 64])
    layers_per_block: int = 1
    attention_blocks: list[int] = field(default_factory=lambda: [1])
    attention_heads: int = 8  # of each attention layer
    norm_num_groups: int = 8

    @property
    def label(self) -> str:
        return f"ldm{unet.label(self)}"

    def check(self, where: str) -> None:
        Model.check(self, where)
        self.autoencoder.check(f"{where}.autoencoder")
        unet.check(where, self)
        heads, channels = self.attention_heads, self.block_out_channels
        require_count(f"{where}.attention_heads", heads, most=1024)
        divisible = all(c % heads == 0 for c in channels)
        allowed = f"multiples of attention_heads={heads}"
        require(divisible, f"{where}.block_out_channels", channels, allowed)
        require_count(f"{where}.text_length", self.text_length, least=3, most=512)
        self.noise_schedule.check(f"{where}.noise_schedule", SCALED_LINEAR, self.prediction)
        allowed = "left out without model.pretrained, whose encoders gave it"
        usable = self.pretrained != "" or not self.encoded
        require(usable, f"{where}.encoded", self.encoded, allowed)
        there, allowed = not self.encoded or Path(self.encoded).is_dir(), "a folder"
        require(there, f"{where}.encoded", self.encoded, allowed)

    def ready(self, training: Training | None = None) -> None:
        if self.pretrained:
            check_encoders(self.pretrained, self._pipeline())
        if training is not None and training.start:
            allowed = (
                "the pipeline with the encoders of training.start, which begins in its latents"
            )
            require(bool(self.pretrained), "model.pretrained", repr(self.pretrained), allowed)
        super().ready(training)

    def check_released(self, setting: str, names: Sequence[str], lora: LoRA | None = None) -> None:
        weights.check_files(setting, self, names, lora)
        pretrained = self._pipeline() if self.pretrained else None
        for name in names:
            folder = weights.pipeline_of(locate_checkpoint(name, setting))
            check_encoders_of_network(f"{setting}={name}", folder, pretrained)

    def _pipeline(self) -> Path:
        return locate_pipeline(self.pretrained)

    def _text_encoder(self) -> TextEncoder:
        if not self.pretrained:
            return TextEncoder.minilm(self.text_length)
        return _pretrained_encoder(self.pretrained, self.text_length)

    def _latent_geometry(self) -> tuple[int, int]:
        """Return the channels of latents, and the pixels per latent along a side."""
        settings = self._vae_config() if self.pretrained else vars(self.autoencoder)
        return settings["latent_channels"], 2 ** (len(settings["block_out_channels"]) - 1)

    def _vae_config(self) -> dict:
        """Return the config of the pretrained autoencoder, with the defaults of its class."""
        config = json.loads((self._pipeline() / "vae" / "config.json").read_text())
        return {"latent_channels": 4, "block_out_channels": [64], "in_channels": 3} | config

    def fits(self, shape: tuple[int, int, int]) -> None:
        width = self._text_encoder().width
        allowed = f"{width}, the width of the text encoder's states"
        require(width == self.context_width, "model.context_width", self.context_width, allowed)
        if self.pretrained:
            channels = self._vae_config()["in_channels"]
            allowed = f"used with images of {channels} channels, not {shape[0]}"
            require(shape[0] == channels, "model.pretrained", self.pretrained, allowed)
        _, side = self._latent_geometry()
        divisible = all(pixels % side == 0 for pixels in shape[1:])
        allowed = f"used with images whose sides are multiples of {side}, not {shape[1]}×{shape[2]}"
        require(divisible, "model", self.label, allowed)
        unet.check_sides(self, "latents", (shape[1] // side, shape[2] // side))

    def check_data(self, where: str, images: "ImageSet") -> None:
        if not self.encoded:
            return
        name = f"{where}.encoded"
        arrays = read_encoded(name, Path(self.encoded), images.ids).arrays
        shapes: dict[str, tuple[int, ...]] = {"mean": self.example_shape(images.images.shape[1:])}
        num_captions = len(images.captions[0]) if images.captions else 0
        shapes["condition"] = (num_captions, *self.condition_shape)
        for key, shape in shapes.items():
            if key in arrays:
                value = f"{self.encoded} with {key}.npy of shape {arrays[key].shape}"
                described = ", ".join(map(str, shape))
                require(arrays[key].shape[1:] == shape, name, value, f"of shape [n, {described}]")
        allowed = "false without deviation.npy in model.encoded"
        usable = "deviation" in arrays or not self.samples_latents
        require(usable, f"{where}.samples_latents", "true", allowed)

    def example_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        """Return the shape of the latents of an image of shape [C, H, W]."""
        channels, side = self._latent_geometry()
        return channels, shape[1] // side, shape[2] // side

    @property
    def condition_shape(self) -> tuple[int, int]:
        return self.text_length, self.context_width

    def first_parameter(self) -> tuple[str, int]:
        return unet.first_parameter(self)

    @property
    def is_flow(self) -> bool:
        return self.prediction is Prediction.flow

    def multiply_adds(self, shape: tuple[int, int, int]) -> float:
        _, height, width = self.example_shape(shape)
        return unet.multiply_adds(self, height * width)

    def latents(self, images: Images, seed: int) -> Latents:
        """Return the latents of all images, and the states or tokens of their captions."""
        text = self._text_encoder()
        if self.pretrained:
            autoencoder, files = None, {self._pipeline() / name for name in ENCODERS}
        else:
            autoencoder = Autoencoder(images, self.autoencoder, seed)
            files = {text.path, text.tokenizer_path}
        encoders = files_hash(*sorted(files))
        encoded = encoded_hash(Path(self.encoded)) if self.encoded else ""
        return Latents(
            images,
            encoders,
            self.text_length,
            autoencoder,
            self.pretrained,
            encoded=encoded,
            source=self.encoded,
        )

    def encode(self, images: "ImageSet", latents: "Artifact | None" = None) -> "Examples":
        """Return the images as latents, with their captions as conditions."""
        import numpy as np
        import torch

        from journey.pipeline.examples import Examples

        assert latents is not None, "a model of latents needs them"

        def tensor(name: str) -> torch.Tensor:
            return torch.from_numpy(np.array(latents.array(f"{name}.npy")))

        deviation = tensor("deviation") if self.samples_latents else None
        if (latents.path / "condition.npy").exists():
            condition = tensor("condition")
        else:  # encoded when they are indexed, as a tensor is
            captions = LazyCaptions(tensor("tokens"), self._text_encoder())
            condition = cast("torch.Tensor", captions)
        return Examples(tensor("mean"), deviation, condition)

    def decode(self, x0: "np.ndarray", latents: "Artifact | None" = None) -> "np.ndarray":
        """Return latents [B, c, h, w] as pixels in −1…1 [B, C, H, W]."""
        import numpy as np
        import torch

        from journey.diffusion import autoencoder

        assert latents is not None, "a model of latents needs their autoencoder"
        network = autoencoder.load(latents.path / "vae", torch.device("cpu"))
        batches = torch.from_numpy(np.array(x0)).split(DECODE_BATCH)
        return np.concatenate([autoencoder.decode(network, z).numpy() for z in batches])

    def check_prompts(self, where: str, prompts: Sequence[str], class_names: Sequence[str]) -> None:
        encoder = self._text_encoder()
        for prompt in prompts:
            cut = encoder.cut(prompt)
            limit = f"at most model.text_length={self.text_length} tokens long"
            require(not cut, where, repr(prompt), f"{limit}: {cut!r} would be cut")

    def read(self, prompts: Sequence[str], class_names: Sequence[str]) -> "torch.Tensor":
        return _states(self._text_encoder(), tuple(prompts))

    def network_config(self, shape: tuple[int, ...]) -> dict[str, object]:
        """Return the arguments of `UNet2DConditionModel` for latents of shape [c, h, w]."""
        return {
            **unet.arguments(self, shape, "CrossAttn"),
            "cross_attention_dim": self.context_width,
            "attention_head_dim": self.attention_heads,  # diffusers' name for their number
        }

    def build(self, shape: tuple[int, ...]) -> "torch.nn.Module":
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        return UNet2DConditionModel(**self.network_config(shape))

    def load(self, path: Path, device: "torch.device") -> "torch.nn.Module":
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        network = UNet2DConditionModel.from_pretrained(
            path, low_cpu_mem_usage=False, local_files_only=True
        )
        return network.to(device).eval()

    def schedule(self, device: "torch.device") -> "Schedule":
        """Return the schedule; by default, scaled linear, with estimates of x_0 not clipped."""
        from journey.diffusion.schedule import make_schedule

        return make_schedule(self.noise_schedule, self.num_timesteps, self.prediction, device)


@functools.cache  # all captions are checked, one by one
def _pretrained_encoder(name: str, text_length: int) -> TextEncoder:
    """Return the text encoder of a pipeline whose encoders are sound. Raises ConfigError."""
    pipeline = locate_pipeline(name)
    check_encoders(name, pipeline)
    return TextEncoder.from_pipeline(pipeline, text_length)


@functools.lru_cache(maxsize=8)  # every guided model needs those of no text
def _states(encoder: TextEncoder, texts: tuple[str, ...]) -> "torch.Tensor":
    """Return the states of a few texts, for which the encoder is loaded once in a process."""
    import torch

    return encoder.states(texts, torch.device("cpu"))
