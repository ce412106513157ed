"""The groups of settings: dataset, model, training, sampling, evaluation, compute, tracking. Methods are in methods.py."""

import math
import re
from dataclasses import dataclass, field
from enum import Enum

from journey.config.checks import require, require_draws, require_name, require_positive
from journey.config.methods import Precision

# ---------------------------------------------------------------------------------------------------- dataset


@dataclass
class Dataset:
    name: str = "???"


@dataclass
class Digits(Dataset):
    name: str = "digits"
    num_train: int = 1000
    seed: int = 0  # of the split

    def __post_init__(self) -> None:
        require_name("dataset.name", self.name)
        require(1 <= self.num_train <= 1797, "dataset.num_train", self.num_train, "in 1…1797")


# ------------------------------------------------------------------------------------------------------ model


@dataclass
class Model:
    name: str = "???"


@dataclass
class DDPM(Model):
    """diffusers `UNet2DModel` in pixel space, trained to predict the noise on a linear schedule (Ho et al. 2020)."""

    name: str = "ddpm_tiny"
    block_out_channels: list[int] = field(default_factory=lambda: [16, 32])
    layers_per_block: int = 1
    attention_blocks: list[int] = field(default_factory=list)  # which down blocks (and their mirrors) attend
    mid_block_attention: bool = False
    norm_num_groups: int = 8
    num_timesteps: int = 1000  # T

    def __post_init__(self) -> None:
        require_name("model.name", self.name)
        channels, groups = self.block_out_channels, self.norm_num_groups
        require(len(channels) > 0, "model.block_out_channels", channels, "a non-empty list")
        require(groups >= 1, "model.norm_num_groups", groups, "at least 1")
        divisible = all(c > 0 and c % groups == 0 for c in channels)
        require(divisible, "model.block_out_channels", channels, f"positive multiples of norm_num_groups={groups}")
        require(self.layers_per_block >= 1, "model.layers_per_block", self.layers_per_block, "at least 1")
        blocks = range(len(channels))
        known = all(b in blocks for b in self.attention_blocks)
        require(known, "model.attention_blocks", self.attention_blocks, f"indices in 0…{len(channels) - 1}")
        require(self.num_timesteps >= 1, "model.num_timesteps", self.num_timesteps, "at least 1")


@dataclass
class Training:
    num_steps: int = 1200
    batch_size: int = 64
    learning_rate: float = 1e-3  # peak: linear warm-up, then a cosine to zero
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    ema_decay: float = 0.0  # 0: the last weights themselves

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, "training.num_steps", self.num_steps, "at least 1")
        require(self.batch_size >= 1, "training.batch_size", self.batch_size, "at least 1")
        require_positive("training.learning_rate", self.learning_rate)
        require(self.warmup_steps >= 0, "training.warmup_steps", self.warmup_steps, "at least 0")
        require(0 <= self.weight_decay < math.inf, "training.weight_decay", self.weight_decay, "at least 0")
        require(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "in [0, 1)")


# --------------------------------------------------------------------------------------------------- sampling


class Sampler(Enum):
    ddpm = "ddpm"
    ddim = "ddim"


@dataclass
class Sampling:
    """The journeys: how query images are generated, and at which of their steps they are attributed and judged."""

    sampler: Sampler = Sampler.ddpm
    num_inference_steps: int = 1000
    num_queries: int = 24
    steps: list[int] = field(default_factory=lambda: [900, 700, 600, 500, 400, 300, 200, 100, 20])

    def __post_init__(self) -> None:
        require(self.num_queries >= 2, "sampling.num_queries", self.num_queries, "at least 2 (one for each half)")
        require(self.num_inference_steps >= 1, "sampling.num_inference_steps", self.num_inference_steps, "at least 1")
        distinct = len(set(self.steps)) == len(self.steps) > 0
        require(distinct, "sampling.steps", self.steps, "a non-empty list of distinct timesteps")
        require(self.steps == sorted(self.steps, reverse=True), "sampling.steps", self.steps, "in falling order")


def visited_timesteps(num_timesteps: int, num_inference_steps: int) -> list[int]:
    """The timesteps a sampler visits, in falling order ("leading" spacing: multiples of T // num_inference_steps)."""
    stride = num_timesteps // num_inference_steps
    return [i * stride for i in reversed(range(num_inference_steps))]


# ------------------------------------------------------------------------------------------------- evaluation


@dataclass
class Evaluation:
    name: str = "???"


@dataclass
class LDS(Evaluation):
    """Linear datamodeling score: rank correlation of predicted with retrained outputs over random subsets."""

    name: str = "lds"
    num_subsets: int = 32  # M
    num_seeds: int = 1  # R trainings of each subset
    fraction: float = 0.5  # of each class that a subset keeps
    num_draws: int = 32
    antithetic: bool = False
    num_bootstrap: int = 2000
    paired_steps: list[int] = field(default_factory=lambda: [600, 500, 400, 300])

    def __post_init__(self) -> None:
        require(self.num_subsets >= 6, "evaluation.num_subsets", self.num_subsets, "at least 6 (three in each half)")
        require(self.num_seeds >= 1, "evaluation.num_seeds", self.num_seeds, "at least 1")
        require(0 < self.fraction < 1, "evaluation.fraction", self.fraction, "strictly between 0 and 1")
        require_draws("evaluation", self.num_draws, self.antithetic)
        halves = 4 if self.antithetic else 2  # the ceiling compares halves of the draws
        require(self.num_draws % halves == 0, "evaluation.num_draws", self.num_draws, f"a multiple of {halves}")
        require(self.num_bootstrap >= 100, "evaluation.num_bootstrap", self.num_bootstrap, "at least 100")
        require(len(self.paired_steps) > 0, "evaluation.paired_steps", self.paired_steps, "a non-empty list")


# ------------------------------------------------------------------------------------------ compute, tracking


class Gradient(Enum):
    auto = "auto"  # time both on the first examples
    loop = "loop"  # an ordinary backward per example
    vmap = "vmap"  # examples side by side


@dataclass
class Compute:
    device: str = "cpu"
    precision: Precision = Precision.fp32
    workers: int = 0  # processes; 0: one per core on a CPU, one on an accelerator
    gradient: Gradient = Gradient.auto
    gradient_memory_gib: float = 0.75  # per worker
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        known = re.fullmatch(r"cpu|mps|cuda(:\d+)?", self.device) is not None
        require(known, "compute.device", self.device, "cpu, cuda, cuda:<index> or mps")
        require(self.workers >= 0, "compute.workers", self.workers, "at least 0")
        require_positive("compute.gradient_memory_gib", self.gradient_memory_gib)
        require(self.checkpoint_seconds >= 0, "compute.checkpoint_seconds", self.checkpoint_seconds, "at least 0")


@dataclass
class Tracking:
    name: str = "???"


@dataclass
class JSONLines(Tracking):
    """`metrics.jsonl` beside every artifact, which there always is, and nothing else."""

    name: str = "jsonl"


class WandbMode(Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass
class Wandb(Tracking):
    """Weights & Biases too."""

    name: str = "wandb"
    mode: WandbMode = WandbMode.offline
    project: str = "journey"
