"""A model of the store as a pipeline of diffusers, to use anywhere else."""

import json
from pathlib import Path

from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import AutoModel, AutoTokenizer

from journey.diffusion.latent import SCALED_LINEAR
from journey.diffusion.lora import ADAPTER_FILE
from journey.diffusion.text import TextEncoder
from journey.engine.spec import describe
from journey.engine.store import MANIFEST
from journey.pipeline.interfaces import Latents, Train
from journey.pipeline.pretrained import locate_pipeline
from journey.pipeline.schedule import PREDICTION_TYPES, NoiseSchedule
from journey.pipeline.settings import Prediction

PIXELS = "ddpm"  # models that DDIMPipeline samples, without classes


def pipeline(directory: Path | str) -> DDIMPipeline | StableDiffusionPipeline:
    """Return the pipeline of a trained model, with the encoders it was trained with, and LoRA.

        pipeline("artifacts/models/twemoji1600-ldm48-64a1-s0-…")("red apple").images[0]
        pipeline("artifacts/models/digits1000-ddpm16-32-s0-…")(batch_size=4).images

    Args:
        directory: The model in a store, which also has its latents.

    Raises:
        ValueError: diffusers has no pipeline that samples it.
    """
    directory = Path(directory)
    manifest = json.loads((directory / MANIFEST).read_text())
    latents = [parent for parent in manifest["parents"] if parent.startswith(f"{Latents.folder}/")]
    settings = manifest["key_fields"]["model"]
    if settings.get("prediction") == "flow":
        raise ValueError(f"{directory}: a flow, which the pipeline's scheduler does not sample")
    if not latents:
        return _of_pixels(directory, settings)
    if settings["pretrained"]:
        path = locate_pipeline(settings["pretrained"])
        text = TextEncoder.from_pipeline(path, settings["text_length"])
    else:
        text = TextEncoder.minilm(settings["text_length"])
    text_encoder = AutoModel.from_pretrained(text.path, local_files_only=True)
    text_encoder.config.use_attention_mask = text.masked  # read by the pipeline
    # The pipeline requires an offset of 1; our samplers visit the timestep before.
    noise = _scheduler_config(settings, SCALED_LINEAR) | {"steps_offset": 1}
    store, network = directory.parents[1], directory
    if (directory / ADAPTER_FILE).is_file():
        (start,) = (p for p in manifest["parents"] if p.startswith(f"{Train.folder}/"))
        network = store / start
    vae = store / latents[0] / "vae"
    result = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(vae, low_cpu_mem_usage=False, local_files_only=True),
        text_encoder=text_encoder,
        tokenizer=AutoTokenizer.from_pretrained(
            text.tokenizer_path, local_files_only=True, model_max_length=text.length
        ),
        unet=UNet2DConditionModel.from_pretrained(
            network, low_cpu_mem_usage=False, local_files_only=True
        ),
        scheduler=DDIMScheduler(**noise | {"clip_sample": False}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # The constructor takes no scheduler that clips.
    result.register_modules(scheduler=DDIMScheduler(**noise))  # type: ignore[attr-defined]
    if network != directory:
        result.load_lora_weights(directory)  # type: ignore[attr-defined]
    return result


def _of_pixels(directory: Path, settings: dict) -> DDIMPipeline:
    """Return the pipeline of an unconditional U-Net of pixels.

    Raises:
        ValueError: It is another network.
    """
    if settings["name"] != PIXELS or settings.get("num_classes", 0):
        raise ValueError(f"{directory}: a network with classes, or no U-Net: without a pipeline")
    unet = UNet2DModel.from_pretrained(directory, low_cpu_mem_usage=False, local_files_only=True)
    return DDIMPipeline(unet, DDIMScheduler(**_scheduler_config(settings, NoiseSchedule())))


def _scheduler_config(settings: dict, default: NoiseSchedule) -> dict:
    """Return the arguments of a scheduler of diffusers with a model's noise and prediction."""
    noise = describe(default) | settings.get("noise_schedule", {})
    del noise["type"]
    prediction = PREDICTION_TYPES[settings.get("prediction", Prediction.noise.value)]
    return noise | {
        "num_train_timesteps": settings["num_timesteps"],
        "prediction_type": prediction,
    }
