"""Draw the figures of an experiment again, each from its result.json alone (trajectories.png shows images, and comes with a run).

    python experiments/redraw.py experiments/counterfactual

Of further results, result-<of>.json, the figures are called <figure>-<of>.png.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from journey.components import EVALUATIONS


def redraw(folder: Path, into: Path) -> list[str]:
    """Write every figure that is in a folder, from its results, as reports have it; returns the names."""
    names = []
    for path in sorted(folder.glob("result*.json")):
        result = json.loads(path.read_text())
        (kind,) = [
            kind for kind in EVALUATIONS if kind.name == result["settings"]["evaluation"]["kind"]
        ]
        for name, figure in kind().figures(result).items():
            called = Path(name).stem + path.stem.removeprefix("result") + ".png"
            if (folder / called).exists():
                figure.savefig(into / called, dpi=160)
                names.append(called)
        plt.close("all")
    return names


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        folder = Path(argument)
        print(f"{folder}: {', '.join(redraw(folder, folder))}")
