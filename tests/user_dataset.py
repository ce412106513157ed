"""A dataset of one's own: python user_dataset.py experiment=smoke dataset=stripes"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import journey


@dataclass
class Stripes(journey.Dataset):
    name: ClassVar[str] = "stripes"
    num_train: int = 200
    num_held_out: int = 20

    def load(self):
        """Stripes that lie or stand, of every phase and contrast."""
        random = np.random.default_rng(0)
        count = self.num_train + self.num_held_out
        labels = np.arange(count) % 2
        waves = np.sin(
            np.arange(8) * random.uniform(0.5, 2, (count, 1)) + random.uniform(0, 6, (count, 1))
        )  # [N, 8]
        grey = np.uint8(127.5 + 127 * waves)[:, None, :, None].repeat(8, 3)  # [N, 1, 8, 8]
        images = np.where(labels[:, None, None, None] == 0, grey, grey.swapaxes(2, 3))
        ids = tuple(f"stripes/{i}" for i in range(count))
        everything = journey.ImageSet(images, labels, None, ids, ("lying", "standing"))
        return everything.take(np.arange(self.num_train)), everything.take(
            np.arange(self.num_train, count)
        )


if __name__ == "__main__":
    journey.main([Stripes])
