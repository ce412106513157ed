"""Sample the model of `experiment=parts` for 64 prompts, and read what the pictures show.

    journey experiment=parts task=train
    python experiments/parts/sample.py [artifacts=…]

Prompts are captions of held-out portraits: of 32 whose pair of head and hat is in training images,
and of 32 whose pair is in none. The parts of the nearest portrait (`read_parts`) are compared with
those of the prompt. Writes samples.png, a pair of samples for each prompt with the unseen pairs
below, and samples.json.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import journey
from journey.data.parts import FAMILIES, Parts, is_unseen, read_parts

NUM_PROMPTS, NUM_SAMPLES = 32, 2  # prompts of each kind
STEPS, GUIDANCE = 50, 3.0
COLUMNS, ENLARGED = 16, 3


def main() -> None:
    """Sample, read, and write both files."""
    # 1. The prompts, and their parts.
    held_out = Parts().load()[1]
    assert held_out.captions is not None
    parts = [tuple(map(int, name.removeprefix("parts/").split("-"))) for name in held_out.ids]
    chosen: list[int] = []
    for unseen in (False, True):
        chosen += [i for i, p in enumerate(parts) if is_unseen(p) == unseen][:NUM_PROMPTS]
    prompts = [held_out.captions[i][0] for i in chosen]

    # 2. Samples.
    pipeline = journey.load("experiment=parts", *sys.argv[1:]).pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for prompt in prompts:
        generator = torch.Generator().manual_seed(len(pictures))
        images = pipeline(
            prompt,
            height=32,
            width=32,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            num_images_per_prompt=NUM_SAMPLES,
            generator=generator,
            output_type="np",
        ).images
        pictures.append(images)  # [2, 32, 32, 3] in [0, 1]
    samples = np.stack(pictures)

    # 3. The parts that they show.
    found, _ = read_parts(samples.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).astype(np.float64))
    right = found.reshape(len(chosen), NUM_SAMPLES, -1) == np.array(parts)[chosen][:, None]
    accuracy = {}
    for kind, rows in (("seen", right[:NUM_PROMPTS]), ("unseen", right[NUM_PROMPTS:])):
        accuracy[kind] = dict(zip(FAMILIES, rows.mean((0, 1)).round(3).tolist(), strict=True))
    sizes = {"num_prompts": NUM_PROMPTS, "num_samples": NUM_SAMPLES, "guidance": GUIDANCE}
    result = {**sizes, "num_inference_steps": STEPS, "accuracy": accuracy, "prompts": prompts}
    folder = Path(__file__).parent
    (folder / "samples.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(accuracy, indent=1))

    # 4. The contact sheet.
    grid = samples.reshape(-1, COLUMNS, *samples.shape[2:]).transpose(0, 2, 1, 3, 4)
    rows, side = len(grid), samples.shape[2]
    pixels = np.rint(grid.reshape(rows * side, COLUMNS * side, 3) * 255).astype(np.uint8)
    sheet = Image.fromarray(pixels)
    enlarged = sheet.resize((ENLARGED * sheet.width, ENLARGED * sheet.height), Image.NEAREST)
    enlarged.save(folder / "samples.png", optimize=True)


if __name__ == "__main__":
    main()
