"""Mathematics of the baselines: cosine similarity, image encoders, and a nonparametric local score.

N  training images;  S  steps;  Q  queries;  E  numbers in an embedding
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ENCODER_BATCH = 32  # images per forward pass of an encoder

Encode = Callable[[Tensor], Tensor]
"""Images in −1…1 [B, 3, side, side] → embeddings [B, E]."""


def cosine_scores(train: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of every query and training example, float32 [1, S, Q, N].

    Args:
        train: Training examples [N, …].
        queries: Examples of the same shape for each query [S, Q, …].

    Raises:
        ValueError: An example is all zeros, which has no direction.
    """
    directions = []
    for vectors in (train.reshape(len(train), -1), queries.reshape(*queries.shape[:2], -1)):
        norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
        if not (norms > 0).all():
            raise ValueError("cosine similarity: an example is all zeros, so it has no direction")
        directions.append(vectors / norms)
    return (directions[1] @ directions[0].T)[None].astype(np.float32)


@torch.no_grad()
def embed_images(encode: Encode, images: Tensor, side: int) -> Tensor:
    """Return the embeddings of images [B, E].

    Args:
        encode: The encoder.
        images: Images in −1…1 [B, 1 or 3, H, W].
        side: Height and width to which images are resized, in pixels.
    """
    embeddings = []
    for block in images.expand(-1, 3, -1, -1).split(ENCODER_BATCH):
        resized = F.interpolate(block, (side, side), mode="bilinear", antialias=True)
        embeddings.append(encode(resized))
    return torch.cat(embeddings)


def efficientnet_lite0(weights: Path | str) -> Encode:
    """Return EfficientNet-Lite0 (Tan and Le 2019): the spatial mean of its last feature map."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval()
    return lambda images: network.extract_features(images).mean((2, 3))


def clip(path: Path | str) -> Encode:
    """Return the image embedding of CLIP (Radford et al. 2021), as transformers saves the model."""
    from transformers import CLIPVisionModelWithProjection

    network = CLIPVisionModelWithProjection.from_pretrained(path, local_files_only=True).eval()
    # Mean and standard deviation, by channel, of the images that CLIP was trained on.
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return lambda images: network(((images + 1) / 2 - mean) / std).image_embeds


def patch_scores(
    train: Tensor, x_t: Tensor, alpha_bar: Tensor, patch_sizes: list[int]
) -> np.ndarray:
    """Return the weight of each training image in the optimal local denoiser of x_t.

    The optimal denoiser that estimates a pixel from a patch Ω around it is a softmax over training
    images of −‖x_t[Ω] − √ᾱ_t x_i[Ω]‖² / (2 (1 − ᾱ_t)) (Kamb and Ganguli 2024, local score without
    translation). The score of image i is its weight, averaged over pixels.

    Args:
        train: Clean images [N, C, H, W].
        x_t: Noisy queries [S, Q, C, H, W].
        alpha_bar: ᾱ_t at each step [S].
        patch_sizes: Odd widths of Ω, in pixels.

    Returns:
        float32 [patch size, S, Q, N].
    """
    scores = np.empty((len(patch_sizes), *x_t.shape[:2], len(train)), np.float32)
    for step, alpha in enumerate(alpha_bar.tolist()):
        for query, noisy in enumerate(x_t[step]):
            square = (noisy - alpha**0.5 * train).square().sum(1, keepdim=True)  # [N, 1, H, W]
            for i, size in enumerate(patch_sizes):
                # A sum over the patch; outside the image, all images are equal.
                distance = F.avg_pool2d(square, size, 1, size // 2) * size**2
                weights = (-distance / (2 * (1 - alpha))).softmax(0)
                scores[i, step, query] = weights.mean((1, 2, 3)).numpy()
    return scores
