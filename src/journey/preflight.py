"""Checks that need the data or this machine, made before the first job, so that not every one of them fails."""

from journey import config, data
from journey.evaluation import subsets
from journey.specs import Subset


def check(run: config.Config) -> None:
    """Raises: ConfigError naming the setting that these data or this machine cannot honour."""
    images, _ = data.load(run.dataset)
    subsets.mask(images.labels, Subset(0, run.evaluation.fraction, run.seed))
    if isinstance(run.model, config.DDPM):
        side, levels = images.images.shape[-2:], len(run.model.block_out_channels)
        fits = all(pixels % 2 ** (levels - 1) == 0 for pixels in side)
        allowed = f"so few that images of {side[0]}×{side[1]} can be halved {levels - 1} times"
        config.require(fits, "model.block_out_channels", run.model.block_out_channels, allowed)
    for method in run.judged.values():
        if isinstance(method, config.Encoder):
            from journey.attribution import encoders

            encoders.weights(method)
    if run.compute.device != "cpu":
        from journey.diffusion import network  # imports torch: only where it has something to tell

        network.device_of(run.compute)
