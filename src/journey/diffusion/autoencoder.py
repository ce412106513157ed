"""The autoencoder between pixels and latents (Rombach et al. 2022): diffusers' `AutoencoderKL`.

x  images in −1…1 [B, C, H, W];  z  latents [B, c, h, w], scaled so that their variance is about 1


Train an autoencoder of images. Payload: the network as diffusers saves it, its latents scaled to variance 1; metrics.jsonl.

Encode training images and their captions, once.

Payload: mean.npy and deviation.npy of the latents, float32 [N, c, h, w]; the autoencoder in vae/, as diffusers saves it; of the
captions context.npy, the states of every token, float32 [N, C, L, E], or, where they would fill more than `MOST_STATES`,
tokens.npy, int64 [2: ids and mask, N, C, L].
"""

import time
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.lib.format import open_memmap
from torch import Tensor

from journey.data.images import train_images
from journey.diffusion import network, training
from journey.diffusion.text import TextEncoder
from journey.engine import resume
from journey.engine.files import new_array
from journey.engine.metrics import track
from journey.engine.seeding import generator
from journey.engine.workspace import Workspace, get
from journey.pipeline.images import ImageSet, as_pixels, read_images
from journey.pipeline.interfaces import Autoencoder, Latents
from journey.pipeline.pretrained import locate
from journey.pipeline.settings import Autoencoding


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
    found = AutoencoderKL.from_pretrained(
        path, use_safetensors=True, low_cpu_mem_usage=False, local_files_only=True
    )
    return found.to(device).eval().requires_grad_(False)


def reconstruction_loss(
    network: AutoencoderKL, x: Tensor, noise: Tensor, kl_weight: float
) -> Tensor:
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


WINDOW = 50  # steps between looks at the loss


BATCH = 64  # images that are measured at once


def make_autoencoder(spec: Autoencoder, partial: Path, workspace: Workspace) -> dict:
    """Raises: FloatingPointError if the loss stops being finite."""
    device = network.get_device(workspace.compute)
    images = train_images(spec.images, workspace)
    settings = spec.autoencoding
    training.initialise(spec.seed, "autoencoder")
    state = training.new_state(build(settings, spec.images.shape).to(device), settings)
    if (kept := resume.load_state(partial)) is not None:
        training.restore(state, partial / kept["checkpoint"])

    saved_at = time.monotonic()
    with track(spec, partial, workspace, resume_step=state.step) as log:
        while state.step < settings.num_steps:
            loss = _step(state, images, spec, device)
            if state.step % WINDOW == 0 or state.step == settings.num_steps:
                if not bool(loss.isfinite()):
                    raise FloatingPointError(
                        f"autoencoder, step {state.step}: the loss is not finite"
                    )
                log(state.step, loss=float(loss))
                if resume.is_due(saved_at, workspace.compute.checkpoint_seconds):
                    name = f"resume.{state.step}.safetensors"
                    training.save(state, partial / name)
                    resume.save_state(partial, {"checkpoint": name}, [name])
                    saved_at = time.monotonic()
        training.use_average(state)
        trained = state.network.eval()
        trained.register_to_config(scaling_factor=1 / _spread(trained, images, device))
        trained.save_pretrained(partial)
        quality = _psnr(trained, read_images(get(spec.images, workspace).path / "held_out"), device)
        log(state.step, psnr_held_out=quality)
    return {"psnr_held_out": quality}


def _step(
    state: training.TrainingState, images: ImageSet, spec: Autoencoder, device: torch.device
) -> torch.Tensor:
    """One step of AdamW; the loss before it."""
    settings, step = spec.autoencoding, state.step
    for group in state.optimizer.param_groups:
        group["lr"] = training.learning_rate(settings, step)
    rows = training.batch_index(
        len(images), settings.batch_size, step, spec.seed, "autoencoder"
    ).numpy()
    x = as_pixels(images.images[rows]).to(device)
    random = generator(spec.seed, "autoencoder", step)
    if settings.flip:
        x = torch.where(
            (torch.rand(len(x), generator=random) < 0.5).to(device)[:, None, None, None],
            x.flip(-1),
            x,
        )
    side = 2 ** (len(settings.block_out_channels) - 1)
    noise = torch.randn(
        len(x), settings.latent_channels, x.shape[2] // side, x.shape[3] // side, generator=random
    )
    loss = reconstruction_loss(state.network, x, noise.to(device), settings.kl_weight)
    state.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), max_norm=settings.clip_norm)
    state.optimizer.step()
    training.update_average(state, settings.ema_decay)
    state.step += 1
    return loss.detach()


def _spread(trained: torch.nn.Module, images: ImageSet, device: torch.device) -> float:
    """Standard deviation of unscaled latents over the first thousand images."""
    with torch.no_grad():
        parts = [
            trained.encode(as_pixels(some).to(device)).latent_dist.mean
            for some in _blocks(images.images[:1000])
        ]
    return float(torch.cat(parts).std())


def _psnr(trained: torch.nn.Module, images: ImageSet, device: torch.device) -> float | None:
    """Of held-out images, reconstructed from their mean latents; None: there are none."""
    if not len(images):
        return None
    total = 0.0
    for some in _blocks(images.images):
        x = as_pixels(some).to(device)
        total += float((decode(trained, encode(trained, x)[0]) - x).square().sum())
    return psnr(total / images.images.size)


def _blocks(images: np.ndarray) -> list[np.ndarray]:
    return [images[first : first + BATCH] for first in range(0, len(images), BATCH)]


BATCH_ENCODE = 64


MOST_STATES = 2**32  # bytes


ARRAYS = ("mean", "deviation")


def make_latents(spec: Latents, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if a latent is not finite."""
    # Load.
    device = network.get_device(workspace.compute)
    images = train_images(spec.images, workspace)
    own = None if spec.autoencoder is None else get(spec.autoencoder, workspace).path
    pipeline = None if own else locate("model.pretrained", spec.pretrained, "a pipeline")
    vae = load(own or pipeline / "vae", device)
    text = (
        TextEncoder.of_pipeline(pipeline, spec.text_length)
        if pipeline
        else TextEncoder.minilm(spec.text_length)
    )

    # Latents, some images at a time.
    shape = (len(images), *encode(vae, as_pixels(images.images[:1]).to(device))[0].shape[1:])
    if (kept := resume.load_state(partial)) is not None:
        done, arrays = kept["rows"], [open_memmap(partial / f"{name}.npy", "r+") for name in ARRAYS]
    else:
        done, arrays = 0, [new_array(partial / f"{name}.npy", shape) for name in ARRAYS]
    saved_at = time.monotonic()
    with track(spec, partial, workspace, resume_step=done) as log:
        for first in range(done, len(images), BATCH_ENCODE):
            found = encode(vae, as_pixels(images.images[first : first + BATCH_ENCODE]).to(device))
            if not all(bool(part.isfinite().all()) for part in found):
                raise FloatingPointError(
                    f"latents of images {first}…{first + BATCH_ENCODE - 1} are not finite"
                )
            for array, part in zip(arrays, found, strict=True):
                array[first : first + BATCH_ENCODE] = part.cpu()
            log(first + BATCH_ENCODE, deviation=float(found[1].mean()))
            if resume.is_due(saved_at, workspace.compute.checkpoint_seconds):
                for array in arrays:
                    array.flush()
                resume.save_state(partial, {"rows": first + BATCH_ENCODE})
                saved_at = time.monotonic()
    for array in arrays:
        array.flush()
    vae.register_to_config(_name_or_path="")  # where it was is no part of the artifact
    vae.save_pretrained(partial / "vae")

    # Captions.
    captions = [caption for of_image in images.captions for caption in of_image]
    if 4 * len(captions) * text.length * text.width <= MOST_STATES:
        states = text.states(captions, device)
        np.save(partial / "context.npy", states.unflatten(0, (len(images), -1)).numpy())
    else:
        tokens = torch.stack(text.tokens(captions))  # [2, N × C, L]
        np.save(partial / "tokens.npy", tokens.unflatten(1, (len(images), -1)).numpy())
