"""Every setting with its default, and every check made before any compute: the door between Hydra and plain Python."""

from journey.config.checks import ConfigError, require
from journey.config.compose import parse, register_schemas
from journey.config.groups import (
    DDPM,
    LDS,
    Compute,
    Dataset,
    Digits,
    Evaluation,
    Gradient,
    JSONLines,
    Model,
    Sampler,
    Sampling,
    Tracking,
    Training,
    Wandb,
    WandbMode,
    visited_timesteps,
)
from journey.config.methods import (
    At,
    Attribution,
    Datamodel,
    Encoder,
    Ensemble,
    Estimator,
    GradientMethod,
    ImageEncoder,
    Kernel,
    Method,
    NonparametricScore,
    Output,
    Pixel,
    Precision,
    Projection,
    Random,
    Readout,
    Scale,
    Unlearning,
    candidates,
)
from journey.config.run import Config, Task, Vary, same_but_for_its_name
