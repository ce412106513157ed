"""A user's dataset: python user_dataset.py experiment=smoke dataset=stripes"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import journey


@dataclass
class Stripes(journey.Dataset):
    """Horizontal and vertical stripes of random phase and contrast."""

    name: ClassVar[str] = "stripes"
    num_train: int = 200
    num_held_out: int = 20

    def load(self):
        random = np.random.default_rng(0)
        count = self.num_train + self.num_held_out
        labels = np.arange(count) % 2
        frequency, phase = random.uniform(0.5, 2, (count, 1)), random.uniform(0, 6, (count, 1))
        waves = np.sin(np.arange(8) * frequency + phase)  # [N, 8]
        rows = np.uint8(127.5 + 127 * waves)[:, None, :, None].repeat(8, 3)  # [N, 1, 8, 8]
        images = np.where(labels[:, None, None, None] == 0, rows, rows.swapaxes(2, 3))
        ids = tuple(f"stripes/{i}" for i in range(count))
        all_images = journey.ImageSet(images, labels, None, ids, ("horizontal", "vertical"))
        train, held_out = np.split(np.arange(count), [self.num_train])
        return all_images.take(train), all_images.take(held_out)


if __name__ == "__main__":
    journey.main([Stripes])
