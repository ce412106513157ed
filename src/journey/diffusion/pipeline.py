"""A text-to-image model that was trained here, as a whole: a pipeline of diffusers, for use anywhere else."""

import json
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoModel, AutoTokenizer

from journey.diffusion.text import TextEncoder
from journey.engine.manifest import MANIFEST
from journey.pipeline.pretrained import locate
from journey.pipeline.settings import Prediction

PREDICTION_TYPES = {Prediction.noise.value: "epsilon", Prediction.velocity.value: "v_prediction"}


def pipeline(directory: Path | str) -> StableDiffusionPipeline:
    """The pipeline of a model in a store, with the encoders it was trained between; `save_pretrained` makes it a folder.

        pipeline("artifacts/models/twemoji1600-ldm48-64a1-s0-…")("red apple", guidance_scale=3).images[0]

    Raises: ValueError if the model is none of latents.
    """
    directory = Path(directory)
    manifest = json.loads((directory / MANIFEST).read_text())
    encoded = [parent for parent in manifest["parents"] if parent.startswith("encoded/")]
    if not encoded:
        raise ValueError(f"{directory}: a model of pixels, which needs no pipeline")
    settings = manifest["contents"]["model"]
    text = _text_encoder(settings)
    network = AutoModel.from_pretrained(text.path, local_files_only=True)
    network.config.use_attention_mask = text.masked  # which is what the pipeline asks
    tokenizer = AutoTokenizer.from_pretrained(
        text.tokenizer_path, local_files_only=True, model_max_length=text.length
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=settings["num_timesteps"],
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=PREDICTION_TYPES[settings["prediction"]],
        clip_sample=False,
        steps_offset=1,  # as the pipeline wants it; journeys visit the timestep before
    )
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(
            directory.parents[1] / encoded[0] / "vae", local_files_only=True
        ),
        text_encoder=network,
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_pretrained(directory, local_files_only=True),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _text_encoder(settings: dict) -> TextEncoder:
    """Of a model's settings, as its manifest has them."""
    if not settings["pretrained"]:
        return TextEncoder.minilm(settings["text_length"])
    path = locate("model.pretrained", settings["pretrained"], "a pipeline as diffusers saves it")
    return TextEncoder.of_pipeline(path, settings["text_length"])
