"""Draw the figures of an experiment again, from its result.json alone (journeys.png shows images, and comes with a run).

python experiments/redraw.py experiments/counterfactual
"""

import json
import sys
from pathlib import Path

from journey.kinds import EVALUATIONS


def redraw(folder: Path, into: Path) -> list[str]:
    """Write every figure of the result in a folder, as its report has them; returns their names."""
    result = json.loads((folder / "result.json").read_text())
    (kind,) = [kind for kind in EVALUATIONS if kind.kind == result["settings"]["evaluation"]["kind"]]
    figures = kind().figures(result)
    for name, figure in figures.items():
        figure.savefig(into / name, dpi=160)
    return list(figures)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        folder = Path(argument)
        print(f"{folder}: {', '.join(redraw(folder, folder))}")
