"""Image encoders for similarity."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH = 32

Encode = Callable[[Tensor], Tensor]
"""images in −1 … 1, [B, 3, side, side] → [B, E]"""


@torch.no_grad()
def embed(encode: Encode, images: Tensor, side: int) -> Tensor:
    """Images in −1 … 1, [B, 1 or 3, H, W], which the encoder sees at side × side pixels → [B, E]."""
    coloured = images.expand(-1, 3, -1, -1)
    parts = [F.interpolate(some, (side, side), mode="bilinear", antialias=True) for some in coloured.split(BATCH)]
    return torch.cat([encode(part) for part in parts])


def efficientnet_lite0(weights: Path | str) -> Encode:
    """EfficientNet-Lite0 (Tan and Le 2019): the mean of its last features."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval()
    return lambda images: network.extract_features(images).mean((2, 3))


def clip(path: Path | str) -> Encode:
    """CLIP's image embedding (Radford et al. 2021), as transformers saves the model."""
    from transformers import CLIPVisionModelWithProjection

    network = CLIPVisionModelWithProjection.from_pretrained(path, local_files_only=True).eval()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)  # of the pixels it was trained on
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return lambda images: network(((images + 1) / 2 - mean) / std).image_embeds
