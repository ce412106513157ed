"""The autoencoder between pixels and latents (Rombach et al. 2022), diffusers' `AutoencoderKL`.

x  images in −1…1 [B, C, H, W];  z  latents [B, c, h, w], scaled to variance 1
N  training images;  L  tokens of a caption;  E  width of a token's state

`make_autoencoder` trains one on the training images. Payload: the network as diffusers saves it,
with the scale of its latents; metrics.jsonl.

`make_latents` encodes the training images and their captions once, or takes arrays that were
computed elsewhere (`encoded.py`). Payload: mean.npy and deviation.npy, float32 [N, c, h, w]; the
autoencoder in vae/; metrics.jsonl; condition.npy, the states of all captions, float32
[N, captions, L, E], or, where they need more than `MAX_CONDITION_BYTES`, tokens.npy, int64
[2: ids and mask, N, captions, L].
"""

import math
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.lib.format import open_memmap
from torch import Tensor

from journey.data.images import train_images
from journey.diffusion import training
from journey.diffusion.encoded import encoded_hash, read_encoded
from journey.diffusion.network import get_device, send
from journey.diffusion.text import TextEncoder
from journey.engine.files import new_array
from journey.engine.metrics import track
from journey.engine.resume import Clock, load_state
from journey.engine.seeding import generator
from journey.engine.workspace import Workspace, get
from journey.pipeline.images import ImageSet, as_pixels, read_images
from journey.pipeline.interfaces import Autoencoder, Latents
from journey.pipeline.pretrained import locate_pipeline
from journey.pipeline.settings import Autoencoding

BATCH_ENCODE = 64  # images that are encoded at once
LOG_STEPS = 50  # between looks at the loss
MAX_CONDITION_BYTES = 2**32


def build(settings: Autoencoding, shape: tuple[int, int, int]) -> AutoencoderKL:
    """Return an untrained autoencoder of images [C, H, W], from torch's global generator."""
    levels = len(settings.block_out_channels)
    return AutoencoderKL(
        in_channels=shape[0],
        out_channels=shape[0],
        sample_size=shape[1],
        block_out_channels=tuple(settings.block_out_channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=settings.latent_channels,
        norm_num_groups=8,
    )


def load(path: Path, device: torch.device) -> AutoencoderKL:
    """Return a trained autoencoder, frozen."""
    vae = AutoencoderKL.from_pretrained(
        path, use_safetensors=True, low_cpu_mem_usage=False, local_files_only=True
    )
    return vae.to(device).eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: AutoencoderKL, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents of images, scaled. [B, c, h, w]"""
    latents, scale = vae.encode(x).latent_dist, vae.config["scaling_factor"]
    return latents.mean * scale, latents.std * scale


@torch.no_grad()
def decode(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """Return the images [B, C, H, W] of scaled latents."""
    return vae.decode(z / vae.config["scaling_factor"]).sample.clamp(-1, 1)


def reconstruction_loss(vae: AutoencoderKL, x: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
    """Return the mean of |x̂ − x| + (x̂ − x)², and kl_weight × KL(q(z|x) ‖ N(0, I)) per element.

    x̂ is the reconstruction from the sample of the latents that the noise [B, c, h, w] gives.

    Differs from the paper: no perceptual and no adversarial loss.
    """
    latents = vae.encode(x).latent_dist
    error = vae.decode(latents.mean + latents.std * noise).sample - x
    divergence = 0.5 * (latents.mean.square() + latents.var - 1 - latents.logvar).mean()
    return error.abs().mean() + error.square().mean() + kl_weight * divergence


def psnr(mean_squared_error: float) -> float:
    """Return the peak signal-to-noise ratio of images in −1…1, in decibels."""
    return 10 * float(torch.log10(torch.tensor(4 / mean_squared_error)))


def make_autoencoder(spec: Autoencoder, partial: Path, workspace: Workspace) -> dict:
    """Train an autoencoder with AdamW.

    Returns:
        The PSNR of held-out images in dB, or None if there are none.

    Raises:
        FloatingPointError: The loss is not finite.
    """
    # Load, or continue from the state that an interrupted run saved.
    device, settings = get_device(workspace.compute), spec.autoencoding
    images = train_images(spec.images, workspace)
    training.initialise(spec.seed, "autoencoder")
    vae = build(settings, spec.images.shape)
    vae.to(device)  # type: ignore[arg-type]  # diffusers wraps the method
    state = training.new_state(vae, settings)
    if (saved := load_state(partial)) is not None:
        training.restore(state, partial / saved["checkpoint"])
    clock = Clock(partial, workspace.compute.checkpoint_seconds)

    with track(spec, partial, workspace) as log:
        # Train.
        while state.step < settings.num_steps:
            loss = _train_step(vae, state, images, spec)
            if state.step % LOG_STEPS == 0 or state.step == settings.num_steps:
                if not loss.isfinite():
                    problem = f"autoencoder, step {state.step}: the loss is not finite"
                    raise FloatingPointError(problem)
                log(state.step, loss=float(loss))
                if clock.due():
                    name = f"resume.{state.step}.safetensors"
                    training.save(state, partial / name)
                    clock.save({"checkpoint": name}, [name])
        training.use_average(state)
        vae.eval()

        # Scale the latents by their standard deviation over the first thousand images.
        means = []
        for first in range(0, min(1000, len(images)), BATCH_ENCODE):
            x = as_pixels(images.images[first : min(first + BATCH_ENCODE, 1000)]).to(device)
            with torch.no_grad():
                means.append(vae.encode(x).latent_dist.mean)
        vae.register_to_config(scaling_factor=1 / float(torch.cat(means).std()))
        vae.save_pretrained(partial)

        # Measure the reconstruction of held-out images from their mean latents.
        held_out = read_images(get(spec.images, workspace).path / "held_out").images
        squared_error = 0.0
        for first in range(0, len(held_out), BATCH_ENCODE):
            x = as_pixels(held_out[first : first + BATCH_ENCODE]).to(device)
            squared_error += float((decode(vae, encode(vae, x)[0]) - x).square().sum())
        quality = psnr(squared_error / math.prod(held_out.shape)) if len(held_out) else None
        log(state.step, psnr_held_out=quality)
    return {"psnr_held_out": quality}


def _train_step(
    vae: AutoencoderKL, state: training.TrainingState, images: ImageSet, spec: Autoencoder
) -> Tensor:
    """Return the loss before a step of AdamW, and make the step."""
    settings, step = spec.autoencoding, state.step
    for group in state.optimizer.param_groups:
        group["lr"] = training.learning_rate(settings, step)
    batch = len(images), settings.batch_size, step, spec.seed, "autoencoder"
    rows = training.batch_index(*batch).numpy()
    x = send(as_pixels(images.images[rows]), vae.device)
    random = generator(spec.seed, "autoencoder", step)
    if settings.flip:
        mirrored = send(torch.rand(len(x), generator=random) < 0.5, vae.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    factor = 2 ** (len(settings.block_out_channels) - 1)
    shape = (len(x), settings.latent_channels, x.shape[2] // factor, x.shape[3] // factor)
    noise = send(torch.randn(shape, generator=random), vae.device)
    loss = reconstruction_loss(vae, x, noise, settings.kl_weight)
    state.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), max_norm=settings.clip_norm)
    state.optimizer.step()
    training.update_average(state, settings.ema_decay)
    state.step += 1
    return loss.detach()


def make_latents(spec: Latents, partial: Path, workspace: Workspace) -> None:
    """Encode the training images and their captions.

    Raises:
        FloatingPointError: A latent is not finite.
    """
    # Load the encoders: those trained here and MiniLM, or those of a pretrained pipeline.
    device = get_device(workspace.compute)
    images = train_images(spec.images, workspace)
    if spec.autoencoder is None:
        pipeline = locate_pipeline(spec.pretrained)
        vae_path, text = pipeline / "vae", TextEncoder.from_pipeline(pipeline, spec.text_length)
    else:
        vae_path = get(spec.autoencoder, workspace).path
        text = TextEncoder.minilm(spec.text_length)
    vae = load(vae_path, device)
    given = _copy_encoded(spec, images, partial, workspace) if spec.encoded else set()
    if not given:
        _encode_images(spec, images, vae, partial, workspace)
    vae.register_to_config(_name_or_path="")  # a path of this machine
    vae.save_pretrained(partial / "vae")

    # Encode the captions, or store their tokens.
    if "condition" in given:
        return
    captions = [caption for captions in images.captions or () for caption in captions]
    if 4 * len(captions) * text.length * text.width <= MAX_CONDITION_BYTES:
        states = text.states(captions, device)
        np.save(partial / "condition.npy", states.unflatten(0, (len(images), -1)).numpy())
    else:
        tokens = torch.stack(text.tokens(captions))  # [2, N × K, L]
        np.save(partial / "tokens.npy", tokens.unflatten(1, (len(images), -1)).numpy())


def _copy_encoded(spec: Latents, images: ImageSet, partial: Path, workspace: Workspace) -> set[str]:
    """Copy arrays that were computed elsewhere, in the order of the images.

    Returns:
        Their names.

    Raises:
        ValueError: They no longer have the content that the cache key names.
    """
    folder = Path(spec.source)
    if encoded_hash(folder) != spec.encoded:
        raise ValueError(f"the files of model.encoded={folder} have changed")
    encoded = read_encoded("model.encoded", folder, images.ids)
    with track(spec, partial, workspace) as log:
        for name, values in encoded.arrays.items():
            array = new_array(partial / f"{name}.npy", (len(images), *values.shape[1:]))
            for first, block in encoded.blocks(name):
                array[first : first + len(block)] = block
            array.flush()
        log(len(images))
    return set(encoded.arrays)


def _encode_images(
    spec: Latents, images: ImageSet, vae: AutoencoderKL, partial: Path, workspace: Workspace
) -> None:
    """Write the latents of images. Raises FloatingPointError if one is not finite."""
    # Begin, or continue from the rows that an interrupted run wrote.
    device = vae.device
    saved = load_state(partial)
    num_rows = 0 if saved is None else saved["rows"]
    paths = [partial / "mean.npy", partial / "deviation.npy"]
    if saved is None:
        latent_shape = encode(vae, as_pixels(images.images[:1]).to(device))[0].shape[1:]
        arrays = [new_array(path, (len(images), *latent_shape)) for path in paths]
    else:
        arrays = [open_memmap(path, "r+") for path in paths]
    clock = Clock(partial, workspace.compute.checkpoint_seconds)

    # Encode the images.
    with track(spec, partial, workspace) as log:
        for first in range(num_rows, len(images), BATCH_ENCODE):
            end = first + BATCH_ENCODE
            latents = encode(vae, as_pixels(images.images[first:end]).to(device))
            for array, values in zip(arrays, latents, strict=True):
                if not bool(values.isfinite().all()):
                    raise FloatingPointError(f"latents of images {first}…{end - 1} are not finite")
                array[first:end] = values.cpu()
            log(end, deviation=float(latents[1].mean()))
            if clock.due():
                for array in arrays:
                    array.flush()
                rows = min(end, len(images))
                clock.save({"rows": rows}, filled={path.name: rows for path in paths})
    for array in arrays:
        array.flush()
