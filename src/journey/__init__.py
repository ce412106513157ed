"""Training-data attribution for diffusion models, step by step, validated by retraining.

`attribute` attributes a user's own network, by a `method`, and `lds` evaluates scores. `load` opens
the results of a run. `main` is the command `journey`; with a user's own components, which implement
one of the interfaces here, it offers them as choices.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from journey.engine.provenance import __version__
from journey.engine.spec import Component
from journey.pipeline.images import ImageSet
from journey.pipeline.interfaces import Dataset, Evaluation, Inputs, Method, Model

if TYPE_CHECKING:
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
    "attribute",
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
