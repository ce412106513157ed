"""Draw the contact sheet of portraits.

python experiments/parts/draw.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from journey.data.parts import SIZES, render

ROWS, COLUMNS, ENLARGED = 8, 12, 3


def main() -> None:
    """Draw random compositions; the first ones show all variants."""
    parts = np.random.default_rng(0).integers(0, SIZES, (ROWS * COLUMNS, len(SIZES)))
    for family, size in enumerate(SIZES):
        parts[:size, family] = np.arange(size)
    portraits = np.rint(render(parts) * 255).astype(np.uint8)
    side = portraits.shape[-1]
    grid = portraits.reshape(ROWS, COLUMNS, 3, side, side).transpose(0, 3, 1, 4, 2)
    sheet = Image.fromarray(grid.reshape(ROWS * side, COLUMNS * side, 3))
    enlarged = sheet.resize((ENLARGED * sheet.width, ENLARGED * sheet.height), Image.NEAREST)
    enlarged.save(Path(__file__).with_name("portraits.png"), optimize=True)


if __name__ == "__main__":
    main()
