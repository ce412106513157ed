"""Train an autoencoder of images. Payload: the network as diffusers saves it, its latents scaled to variance 1; metrics.jsonl."""

import time
from pathlib import Path

import numpy as np
import torch

from journey.artifacts import resume
from journey.artifacts.specs import Autoencoder
from journey.artifacts.workspace import Workspace, get
from journey.data import ImageSet, as_pixels, read, train_images
from journey.diffusion import autoencoder, network, training
from journey.seeding import generator
from journey.tracking import track

WINDOW = 50  # steps between looks at the loss
BATCH = 64  # images that are measured at once


def make(spec: Autoencoder, partial: Path, workspace: Workspace) -> dict:
    """Raises: FloatingPointError if the loss stops being finite."""
    device = network.device_of(workspace.compute)
    images = train_images(spec.images, workspace)
    settings = spec.autoencoding
    training.initialise(spec.seed, "autoencoder")
    state = training.new_state(autoencoder.build(settings, spec.images.shape).to(device), settings)
    if (kept := resume.resumed(partial)) is not None:
        training.restore(state, partial / kept["checkpoint"])

    saved_at = time.monotonic()
    with track(spec, partial, workspace, resume_step=state.step) as log:
        while state.step < settings.num_steps:
            loss = _step(state, images, spec, device)
            if state.step % WINDOW == 0 or state.step == settings.num_steps:
                if not bool(loss.isfinite()):
                    raise FloatingPointError(f"autoencoder, step {state.step}: the loss is not finite")
                log(state.step, loss=float(loss))
                if resume.due(saved_at, workspace.compute.checkpoint_seconds):
                    name = f"resume.{state.step}.safetensors"
                    training.save(state, partial / name)
                    resume.keep(partial, {"checkpoint": name}, [name])
                    saved_at = time.monotonic()
        training.use_average(state)
        trained = state.network.eval()
        trained.register_to_config(scaling_factor=1 / _spread(trained, images, device))
        trained.save_pretrained(partial)
        quality = _psnr(trained, read(get(spec.images, workspace).path / "held_out"), device)
        log(state.step, psnr_held_out=quality)
    return {"psnr_held_out": quality}


def _step(state: training.State, images: ImageSet, spec: Autoencoder, device: torch.device) -> torch.Tensor:
    """One step of AdamW; the loss before it."""
    settings, step = spec.autoencoding, state.step
    for group in state.optimizer.param_groups:
        group["lr"] = training.learning_rate(settings, step)
    rows = training.batch_index(len(images), settings.batch_size, step, spec.seed, "autoencoder").numpy()
    x = as_pixels(images.images[rows]).to(device)
    random = generator(spec.seed, "autoencoder", step)
    if settings.flip:
        x = torch.where((torch.rand(len(x), generator=random) < 0.5).to(device)[:, None, None, None], x.flip(-1), x)
    side = 2 ** (len(settings.block_out_channels) - 1)
    noise = torch.randn(len(x), settings.latent_channels, x.shape[2] // side, x.shape[3] // side, generator=random)
    loss = autoencoder.loss(state.network, x, noise.to(device), settings.kl_weight)
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
        parts = [trained.encode(as_pixels(some).to(device)).latent_dist.mean for some in _blocks(images.images[:1000])]
    return float(torch.cat(parts).std())


def _psnr(trained: torch.nn.Module, images: ImageSet, device: torch.device) -> float | None:
    """Of held-out images, reconstructed from their mean latents; None: there are none."""
    if not len(images):
        return None
    total = 0.0
    for some in _blocks(images.images):
        x = as_pixels(some).to(device)
        total += float((autoencoder.decode(trained, autoencoder.encode(trained, x)[0]) - x).square().sum())
    return autoencoder.psnr(total / images.images.size)


def _blocks(images: np.ndarray) -> list[np.ndarray]:
    return [images[first : first + BATCH] for first in range(0, len(images), BATCH)]
