"""Draw the figures of experiments again from their result.json.

    python experiments/redraw.py experiments/counterfactual

The figures of a further result, result-<name>.json, are called <figure>-<name>.png, and each has a
PDF beside it. The figure trajectories.png shows images and comes with a run.
"""

import json
import sys
from pathlib import Path

from journey.components import EVALUATIONS
from journey.evaluation.plots import save_figure


def redraw(folder: Path, into: Path) -> list[str]:
    """Write the figures that a folder has, from its results, and return their names."""
    evaluations = {evaluation.name: evaluation for evaluation in EVALUATIONS}
    names = []
    for path in sorted(folder.glob("result*.json")):
        result = json.loads(path.read_text())
        evaluation = evaluations[result["settings"]["evaluation"]["name"]]()
        for file, figure in evaluation.figures(result).items():
            name = Path(file).stem + path.stem.removeprefix("result") + ".png"
            if (folder / name).exists():
                for suffix in (".png", ".pdf"):
                    save_figure(figure, (into / name).with_suffix(suffix))
                names.append(name)
    return names


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        folder = Path(argument)
        print(f"{folder}: {', '.join(redraw(folder, folder))}")
