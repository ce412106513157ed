"""A model whose settings are those of a checkpoint: read from its config.json and its scheduler's.

The settings are looked up once, when a run is composed. From then on, the model is an ordinary one
of its architecture, with the same cache keys as if somebody had written the settings down.
"""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from journey.diffusion import weights
from journey.diffusion.checkpoint_files import UnreadableError, read_json
from journey.diffusion.ddpm import DDPM
from journey.diffusion.latent import ENCODERS, LatentDiffusion
from journey.diffusion.released import network_settings, scheduler_settings
from journey.engine.checks import ConfigError, require
from journey.pipeline.interfaces import Model
from journey.pipeline.pretrained import locate_checkpoint
from journey.pipeline.schedule import BetaSchedule
from journey.pipeline.settings import Prediction

if TYPE_CHECKING:
    import torch

    from journey.pipeline.schedule import Schedule

ARCHITECTURES: tuple[type[DDPM] | type[LatentDiffusion], ...] = (DDPM, LatentDiffusion)
TEXT_LENGTH = 77  # tokens, where a tokenizer does not say how many it takes


@dataclass
class FromCheckpoint(Model):
    """The model of the first of `checkpoints`, a folder of diffusers.

    Of a text-to-image model, the encoders are those of its pipeline, unless `pretrained` names
    another one.
    """

    name: ClassVar[str] = "from_checkpoint"
    # A pipeline with the encoders of a text-to-image model; by default, that of the checkpoint.
    pretrained: str = field(default="", metadata={"path": True})
    text_length: int = 0  # tokens of a text; 0: as many as the tokenizer takes

    def resolved(self) -> Model:
        """Return the model with the settings that the configs of the checkpoint determine.

        Raises:
            ConfigError: A config is missing, or says what no setting has.
        """
        for key in vars(self).keys() - {f.name for f in fields(self)}:
            raise ConfigError(f"model.{key}: no such key with model={self.name}")
        allowed = f"a list with a folder of diffusers, whose configs model={self.name} reads"
        require(len(self.checkpoints) > 0, "model.checkpoints", self.checkpoints, allowed)
        name = self.checkpoints[0]
        path = locate_checkpoint(name)
        try:
            return self._described_by(path, weights.find_files(path))
        except UnreadableError as error:
            raise ConfigError(f"model.checkpoints={name}: {error}") from None

    def _described_by(self, path: Path, files: weights.Released) -> Model:
        # 1. The architecture.
        if files.config is None:
            raise UnreadableError("it has no config.json to read; choose a model by its name")
        class_name = read_json(files.config).get("_class_name")
        networks = {architecture.network: architecture for architecture in ARCHITECTURES}
        if class_name not in networks:
            allowed = " or ".join(networks)
            raise UnreadableError(f"config.json is of {class_name}, must be of {allowed}")
        model = networks[str(class_name)](
            num_timesteps=self.num_timesteps,
            checkpoints=list(self.checkpoints),
            checkpoint_key=self.checkpoint_key,
        )
        for setting, value in network_settings(model, files.config).items():
            setattr(model, setting, value)

        # 2. The noise.
        if files.scheduler is not None:
            settings = {k: value for k, (_, value) in scheduler_settings(files.scheduler).items()}
            model.num_timesteps = int(str(settings.pop("num_timesteps")))
            model.prediction = Prediction(settings.pop("prediction"))
            noise = {k.removeprefix("noise_schedule."): value for k, value in settings.items()}
            noise["beta_schedule"] = BetaSchedule(noise["beta_schedule"])
            model.noise_schedule = replace(model.noise_schedule, **noise)  # type: ignore[arg-type]

        # 3. The encoders.
        if isinstance(model, LatentDiffusion):
            pipeline = weights.pipeline_of(path)
            has_encoders = all((pipeline / part).is_dir() for part in ENCODERS)
            model.pretrained = self.pretrained or (str(pipeline) if has_encoders else "")
            model.text_length = self.text_length or _text_length(Path(model.pretrained))
        else:
            for setting in ("pretrained", "text_length"):
                allowed = f"left out: {class_name} reads no text"
                value = getattr(self, setting)
                require(not value, f"model.{setting}", value, allowed)
        return model

    def multiply_adds(self, shape: tuple[int, int, int]) -> float:
        return self.resolved().multiply_adds(shape)

    def build(self, shape: tuple[int, ...]) -> "torch.nn.Module":
        return self.resolved().build(shape)

    def load(self, path: Path, device: "torch.device") -> "torch.nn.Module":
        return self.resolved().load(path, device)

    def schedule(self, device: "torch.device") -> "Schedule":
        return self.resolved().schedule(device)


def _text_length(pipeline: Path) -> int:
    """Return how many tokens the tokenizer of a pipeline takes."""
    try:
        config = json.loads((pipeline / "tokenizer/tokenizer_config.json").read_text())
        length = config["model_max_length"]
    except (OSError, ValueError, KeyError, TypeError):
        return TEXT_LENGTH
    return length if isinstance(length, int) and length <= 512 else TEXT_LENGTH
