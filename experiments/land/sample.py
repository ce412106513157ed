"""Sample models of landscapes that were trained for different lengths, and measure their distance.

    python experiments/land/sample.py [artifacts=…]

Writes samples.png, samples of the model of `experiment=land`, each above the nearest training crop
by pixels, and samples.json: the Fréchet distance of the samples from held-out crops in the features
of an encoder, by training length. That of training crops is what a perfect model would have.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import journey
from journey.attribution.baselines import Encoder
from journey.evaluation.counterfactual.changes import frechet, principal

LENGTHS = (300, 600, 1200, 2400, 4800)  # optimizer steps
NUM_SAMPLES, STEPS, DIMENSIONS = 400, 50, 16
SHOWN, COLUMNS, ENLARGED = 64, 16, 4
SHOWN_LENGTH = 2400


def main() -> None:
    """Train what is not cached, sample, measure, and write both files."""
    # 1. Photographs, and the axes along which features are compared.
    run = journey.load("experiment=land", *sys.argv[1:])
    train, held_out = run.run.dataset.load()
    embed = Encoder(side=96).load()

    def features(pictures: np.ndarray) -> np.ndarray:
        """Return the encoder's features [n, E] of pictures [n, 3, H, W] in [0, 1]."""
        parts = torch.from_numpy(pictures).float().mul(2).sub(1).split(100)
        return np.concatenate([embed(part).numpy() for part in parts])

    train_pictures = train.images[:] / 255
    train_features = features(train_pictures)
    mean, axes = principal(train_features, DIMENSIONS)

    def distance(values: np.ndarray) -> float:
        return frechet((values - mean) @ axes, held_out_axes)

    held_out_axes = (features(held_out.images[:] / 255) - mean) @ axes
    chosen = np.random.default_rng(0).permutation(len(train))[:NUM_SAMPLES]
    distances = {"training crops": distance(train_features[chosen])}

    # 2. Samples of every length.
    for length in LENGTHS:
        changes = "task=train", "attribution.num_checkpoints=1", f"training.num_steps={length}"
        pipeline = journey.compute("experiment=land", *changes, *sys.argv[1:]).pipeline()
        pipeline.set_progress_bar_config(disable=True)
        samples = pipeline(
            batch_size=NUM_SAMPLES,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images.transpose(0, 3, 1, 2)
        distances[str(length)] = distance(features(samples))
        if length == SHOWN_LENGTH:
            shown = samples[:SHOWN]
    result = {"num_samples": NUM_SAMPLES, "num_inference_steps": STEPS, "frechet": distances}
    folder = Path(__file__).parent
    (folder / "samples.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(distances, indent=1))

    # 3. The contact sheet: rows of samples, each above their nearest crops.
    flat, crops = shown.reshape(SHOWN, -1), train_pictures.reshape(len(train), -1)
    nearest = np.square(flat[:, None] - crops).mean(-1).argmin(1)
    pairs = np.stack([shown, train_pictures[nearest]], 1)  # [n, 2, 3, H, W]
    side = pairs.shape[-1]
    grid = pairs.reshape(-1, COLUMNS, 2, 3, side, side).transpose(0, 2, 4, 1, 5, 3)
    pixels = np.rint(grid.reshape(-1, COLUMNS * side, 3) * 255).astype(np.uint8)
    sheet = Image.fromarray(pixels)
    size = (ENLARGED * sheet.width, ENLARGED * sheet.height)
    sheet.resize(size, Image.BICUBIC).save(folder / "samples.png", optimize=True)


if __name__ == "__main__":
    main()
