"""Checks that need the data or this machine, made before the first job, so that not every one of them fails."""

import os

from journey.artifacts.recipes import Recipes
from journey.artifacts.released import network
from journey.config.checks import require, require_count
from journey.config.settings import Config
from journey.data import ImageSet, subsets
from journey.diffusion import weights


def check_data(run: Config, made_from: Recipes, train: ImageSet) -> None:
    """Raises: ConfigError naming the setting that these data cannot honour."""
    run.model.fits(made_from.images.shape)
    captioned = train.captions is not None or not run.model.reads_text
    require(captioned, "dataset", run.dataset.label, f"one with captions: model={run.model.kind} reads them")
    run.model.check_prompts("sampling.prompts", run.sampling.prompts)
    shape = run.model.example_shape(made_from.images.shape)
    for checkpoint in run.model.checkpoints:
        weights.check("model.checkpoints", run.model, network(checkpoint), shape)
    require_count("training.batch_size", run.training.batch_size, most=len(train))
    subsets.mask(train.labels, made_from.subset(0))
    for name, method in run.judged.items():
        method.check_data(f"method.{name}", made_from.journeys, train)
    run.evaluation.check_data("evaluation", made_from.journeys, train)


def check_machine(run: Config) -> None:
    """Raises: ConfigError if this machine cannot do what is asked of it."""
    for name, path in (("artifacts", run.artifacts), ("reports", run.reports)):
        require(os.path.isdir(path) or not os.path.lexists(path), name, path, "a directory, or nothing yet")
    run.compute.ready()
    run.tracking.ready()
