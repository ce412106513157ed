"""Encode training images and their captions, once.

Payload: mean.npy and deviation.npy of the latents, float32 [N, c, h, w]; the autoencoder in vae/, as diffusers saves it; of the
captions context.npy, the states of every token, float32 [N, C, L, E], or, where they would fill more than `MOST_STATES`,
tokens.npy, int64 [2: ids and mask, N, C, L].
"""

import time
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from journey.artifacts import resume
from journey.artifacts.files import new_array
from journey.artifacts.released import located
from journey.artifacts.specs import Encoded
from journey.artifacts.workspace import Workspace, get
from journey.data import as_pixels, train_images
from journey.diffusion import autoencoder, network
from journey.diffusion.text import TextEncoder
from journey.tracking import track

BATCH = 64
MOST_STATES = 2**32  # bytes
ARRAYS = ("mean", "deviation")


def make(spec: Encoded, partial: Path, workspace: Workspace) -> None:
    """Raises: FloatingPointError if a latent is not finite."""
    # Load.
    device = network.device_of(workspace.compute)
    images = train_images(spec.images, workspace)
    own = None if spec.autoencoder is None else get(spec.autoencoder, workspace).path
    pipeline = None if own else located("model.pretrained", spec.pretrained, "a pipeline")
    vae = autoencoder.load(own or pipeline / "vae", device)
    text = TextEncoder.of_pipeline(pipeline, spec.text_length) if pipeline else TextEncoder.minilm(spec.text_length)

    # Latents, some images at a time.
    shape = (len(images), *autoencoder.encode(vae, as_pixels(images.images[:1]).to(device))[0].shape[1:])
    if (kept := resume.resumed(partial)) is not None:
        done, arrays = kept["rows"], [open_memmap(partial / f"{name}.npy", "r+") for name in ARRAYS]
    else:
        done, arrays = 0, [new_array(partial / f"{name}.npy", shape) for name in ARRAYS]
    saved_at = time.monotonic()
    with track(spec, partial, workspace, resume_step=done) as log:
        for first in range(done, len(images), BATCH):
            found = autoencoder.encode(vae, as_pixels(images.images[first : first + BATCH]).to(device))
            if not all(bool(part.isfinite().all()) for part in found):
                raise FloatingPointError(f"latents of images {first}…{first + BATCH - 1} are not finite")
            for array, part in zip(arrays, found, strict=True):
                array[first : first + BATCH] = part.cpu()
            log(first + BATCH, deviation=float(found[1].mean()))
            if resume.due(saved_at, workspace.compute.checkpoint_seconds):
                for array in arrays:
                    array.flush()
                resume.keep(partial, {"rows": first + BATCH})
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
