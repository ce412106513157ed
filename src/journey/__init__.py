"""Training-data attribution for diffusion models, step by step, validated by retraining.

`attribute` attributes a user's own network, by a `method`, and `lds` evaluates scores. `compute`
runs an experiment, `load` opens its results, and `add_images` makes a dataset of arrays. `main` is
the command `journey`; with a user's own components, which implement one of the interfaces here, it
offers them as choices.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from journey.engine.provenance import __version__
from journey.engine.spec import Component
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import Dataset, Evaluation, Inputs, Method, Model

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from journey.api import JourneyTRAK, attribute, lds, method
    from journey.run import Run


__all__ = [
    "Component",
    "Dataset",
    "Evaluation",
    "ImageSet",
    "Inputs",
    "JourneyTRAK",
    "Method",
    "Model",
    "__version__",
    "add_images",
    "attribute",
    "compute",
    "lds",
    "load",
    "main",
    "method",
]


def __getattr__(name: str) -> object:
    """Return a function of `journey.api`, which is imported only now: it imports torch.

    `open` is the former name of `load`, for one version.

    Raises:
        AttributeError: There is none of this name.
    """
    if name in ("JourneyTRAK", "attribute", "lds", "method"):
        from journey import api

        return getattr(api, name)
    if name == "open":
        return load
    raise AttributeError(f"module journey has no attribute {name}")


def main(components: Sequence[type[Component]] = ()) -> None:
    """Run the command `journey`.

    Args:
        components: A user's own components, each a choice of its group by its name.
    """
    from journey.__main__ import main as command

    command(components)


def load(*overrides: str, components: Sequence[type[Component]] = ()) -> "Run":
    """Return the results of the run that the command composes from the same overrides.

    Nothing is computed: an error names a missing artifact and the command that computes it. A
    setting that is not allowed raises ConfigError or Hydra's error.

    Args:
        *overrides: As on the command line, such as `"experiment=digits"`.
        components: A user's own components.
    """
    from journey.run import load_run

    return load_run(overrides, components)


def compute(*overrides: str, components: Sequence[type[Component]] = ()) -> "Run":
    """Compute what the command computes from the same overrides.

    A script calls it under `if __name__ == "__main__":`, since workers import the script. A setting
    that is not allowed raises ConfigError or Hydra's error.

    Args:
        *overrides: As on the command line, such as `"experiment=digits"`.
        components: A user's own components.

    Returns:
        The results, as `load`.
    """
    from pathlib import Path

    from journey.__main__ import dispatch

    opened = load(*overrides, components=components)
    dispatch(opened.run, Path(opened.run.reports) / opened.run.name, opened.words)
    return opened


def add_images(
    images: "np.ndarray | Tensor",
    labels: "Sequence[int] | Sequence[str] | np.ndarray | Tensor | None" = None,
    captions: Sequence[str] | Sequence[Sequence[str]] | None = None,
    ids: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    num_held_out: int = 0,
    value_range: tuple[float, float] | None = None,
    artifacts: str = "artifacts",
) -> list[str]:
    """Store images by their content, and return the words that choose them as the dataset.

    Args:
        images: uint8, or floating point with `value_range`. [N, C, H, W]
        labels: A class of each image: a text, or a whole number. [N]
        captions: A caption of each image, or equally many of each.
        ids: N distinct names; by default, row numbers.
        class_names: Names of the classes 0, 1, …; by default, the labels themselves.
        num_held_out: How many images, the last ones, are not trained on.
        value_range: The values of black and white of floating-point images, which are rounded to
            256 levels.
        artifacts: The store, as the setting `artifacts` of a run.

    Returns:
        Overrides of `compute`, `load` and the command: `dataset`, its content and `artifacts`.

    Raises:
        ConfigError: A type, a value or a number of items is not allowed.
    """
    from pathlib import Path

    from journey.data.arrays import adding, as_image_set, split_last
    from journey.engine.store import Store
    from journey.experiment import store_images

    image_set = as_image_set(images, labels, captions, ids, class_names, value_range)
    with adding(*split_last(image_set, num_held_out)) as dataset:
        store_images(dataset, Store(Path(artifacts).expanduser()))
    return ["dataset=arrays", f"dataset.content={dataset.content}", f"artifacts={artifacts}"]
