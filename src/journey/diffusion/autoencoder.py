"""The autoencoder between pixels and latents (Rombach et al. 2022): diffusers' `AutoencoderKL`.

x  images in −1…1 [B, C, H, W];  z  latents [B, c, h, w], scaled so that their variance is about 1
"""

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from journey.config.groups import Autoencoding


def build(settings: Autoencoding, shape: tuple[int, int, int]) -> AutoencoderKL:
    """An untrained one, for images of a shape, initialised from torch's global generator."""
    channels, levels = settings.block_out_channels, len(settings.block_out_channels)
    return AutoencoderKL(
        in_channels=shape[0],
        out_channels=shape[0],
        sample_size=shape[1],
        block_out_channels=tuple(channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=settings.latent_channels,
        norm_num_groups=8,
    )


def load(path: Path, device: torch.device) -> AutoencoderKL:
    """A trained one, frozen."""
    found = AutoencoderKL.from_pretrained(path, use_safetensors=True, low_cpu_mem_usage=False, local_files_only=True)
    return found.to(device).eval().requires_grad_(False)


def loss(network: AutoencoderKL, x: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
    """Mean of |x̂ − x| + (x̂ − x)² for a sample of the latents, and their divergence from N(0, I). Scalar.

    noise: what the sample is drawn by, [B, c, h, w].
    """
    latents = network.encode(x).latent_dist
    error = network.decode(latents.mean + latents.std * noise).sample - x
    divergence = 0.5 * (latents.mean.square() + latents.var - 1 - latents.logvar).mean()
    return error.abs().mean() + error.square().mean() + kl_weight * divergence


@torch.no_grad()
def encode(network: AutoencoderKL, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents, scaled. [B, c, h, w]"""
    latents = network.encode(x).latent_dist
    scale = network.config.scaling_factor
    return latents.mean * scale, latents.std * scale


@torch.no_grad()
def decode(network: AutoencoderKL, z: Tensor) -> Tensor:
    """Pictures of scaled latents, in −1…1."""
    return network.decode(z / network.config.scaling_factor).sample.clamp(-1, 1)


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio of images in −1…1, in decibels."""
    return 10 * float(torch.log10(torch.tensor(4 / mean_squared_error)))
