"""Print the README's results table from the committed results; tests/test_readme.py compares them.

python experiments/results_table.py
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
DATASETS = {  # by folder: what a column is called
    "digits": "digits (`digits`)",
    "methods": "digits, other seed (`methods`)",
    "finetune": "portraits, text-to-image, LoRA; t = 900…600 (`finetune`)",
    "mnist5k": "MNIST (`mnist5k`)",
    "twemoji": "emoji, text-to-image (`twemoji`)",
}
METHODS = {
    "journey": "Journey-TRAK",
    "trak": "TRAK, final image",
    "dtrak": "D-TRAK",
    "das": "DAS",
    "ekfac": "EK-FAC influence",
    "nda": "nonparametric score",
    "pixel": "cosine of pixels",
    "random": "random",
}


def table() -> str:
    """Return a Markdown table of the linear LDS × 100 with its 95% interval.

    It is the query-centred LDS where a result has it. The table has a line for each method and a
    column for each dataset.
    """
    columns = {}
    for folder in DATASETS:
        result = json.loads((HERE / folder / "result.json").read_text())
        # Results of the former protocol have no query-centred LDS of linear scores.
        quantity = "query_centred" if "primary" in result else "lds"
        ceiling = "query_centred_ceiling" if "primary" in result else "ceiling"
        cells = {"statistic": "query-centred" if "primary" in result else "plain"}
        for row in result["rows"]:
            if row["target"] != "paired_steps":
                continue
            if row["quantity"] == quantity and row["score_transform"] == "linear":
                cells[row["method"]] = _interval(row)
            elif row["quantity"] == ceiling and row["method"] == "noise_samples":
                cells["ceiling"] = _interval(row)
        sizes = (
            result["num_train"],
            result["num_subsets"],
            result["num_seeds"],
            result["num_queries"],
        )
        cells["sizes"] = "{:,} / {} × {} / {}".format(*sizes)
        columns[folder] = cells
    lines = ["| | " + " | ".join(DATASETS.values()) + " |", "|---" * (1 + len(DATASETS)) + "|"]
    titles = METHODS | {
        "ceiling": "ceiling, these models",
        "statistic": "LDS of linear scores",
        "sizes": "images / subsets × seeds / queries",
    }
    for name, title in titles.items():
        lines.append(
            f"| {title} | " + " | ".join(cells.get(name, "") for cells in columns.values()) + " |"
        )
    return "\n".join(lines) + "\n"


def _interval(row: dict[str, float]) -> str:
    value, low, high = (
        f"{100 * row[end]:z.0f}".replace("-", "−") for end in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    print(table(), end="")
