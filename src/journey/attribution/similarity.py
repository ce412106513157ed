"""Cosine similarity of a query's estimate x̂0_t and a training example: of their pixels, or in an encoder's space.

Image encoders for similarity.

Nonparametric local score: how much each training image's patches weigh in the optimal local denoiser of x_t; no model.

The optimal denoiser whose estimate of a pixel sees a patch Ω around it is a softmax over training images of
−‖x_t[Ω] − √ᾱ_t x_i[Ω]‖² / (2 (1 − ᾱ_t)) (Kamb and Ganguli 2024, local score without translation); τ_i is image i's
weight, averaged over pixels.


Show all images to an encoder. Payload: train.npy and held_out.npy, float32 [N, E]."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from journey.attribution.baselines import Embeddings
from journey.engine.workspace import Workspace, get
from journey.pipeline.images import as_pixels, read_images


def cosine_scores(train: np.ndarray, x0_hat: np.ndarray) -> np.ndarray:
    """train: clean examples [N, …]; x0_hat: [step, query, …]. Returns [1, step, query, train].

    Raises: ValueError if an example is all zeros, which has no direction.
    """
    unit_train = _unit(train.reshape(len(train), -1))
    unit_queries = _unit(x0_hat.reshape(*x0_hat.shape[:2], -1))
    return (unit_queries @ unit_train.T)[None].astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (norms > 0).all():
        raise ValueError("cosine: an image is all zeros in this space, so it has no direction")
    return vectors / norms


ENCODER_BATCH = 32


Encode = Callable[[Tensor], Tensor]
"""images in −1 … 1, [B, 3, side, side] → [B, E]"""


@torch.no_grad()
def embed_images(encode: Encode, images: Tensor, side: int) -> Tensor:
    """Images in −1 … 1, [B, 1 or 3, H, W], which the encoder sees at side × side pixels → [B, E]."""
    coloured = images.expand(-1, 3, -1, -1)
    parts = [
        F.interpolate(some, (side, side), mode="bilinear", antialias=True)
        for some in coloured.split(ENCODER_BATCH)
    ]
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
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(
        3, 1, 1
    )  # of the pixels it was trained on
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return lambda images: network(((images + 1) / 2 - mean) / std).image_embeds


def patch_scores(
    train: Tensor, x_t: Tensor, alpha_bar: Tensor, patch_sizes: list[int]
) -> np.ndarray:
    """train: clean images [N, C, H, W]; x_t: noisy queries [step, query, C, H, W]; alpha_bar: ᾱ_t [step].

    Returns [patch size, step, query, train].
    """
    scores = np.empty((len(patch_sizes), *x_t.shape[:2], len(train)), np.float32)
    for step, alpha in enumerate(alpha_bar.tolist()):
        for query, noisy in enumerate(x_t[step]):
            square = (noisy - alpha**0.5 * train).square().sum(1, keepdim=True)  # [N, 1, H, W]
            for i, size in enumerate(patch_sizes):
                distance = (
                    F.avg_pool2d(square, size, 1, size // 2) * size**2
                )  # outside the image nothing differs
                weights = (-distance / (2 * (1 - alpha))).softmax(0)
                scores[i, step, query] = weights.mean((1, 2, 3)).numpy()
    return scores


TOGETHER = 1024  # images that are pixels in memory at once


def make_embeddings(spec: Embeddings, partial: Path, workspace: Workspace) -> None:
    """Raises: ValueError if an embedding is not finite."""
    kept = get(spec.images, workspace).path
    encode = spec.encoder.load()
    for part in ("train", "held_out"):
        images = read_images(kept / part).images
        blocks = [images[first : first + TOGETHER] for first in range(0, len(images), TOGETHER)]
        embedded = torch.cat([encode(as_pixels(block)) for block in blocks]).numpy()
        if not np.isfinite(embedded).all():
            raise ValueError(f"embeddings of {spec.label} are not finite")
        np.save(partial / f"{part}.npy", embedded)
