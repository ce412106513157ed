"""A text-to-image model of the store as a pipeline of diffusers, to use anywhere else."""

import json
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoModel, AutoTokenizer

from journey.diffusion.latent import SCALED_LINEAR
from journey.diffusion.lora import ADAPTER_FILE
from journey.diffusion.text import TextEncoder
from journey.engine.spec import describe
from journey.engine.store import MANIFEST
from journey.pipeline.interfaces import Latents, Train
from journey.pipeline.pretrained import locate_pipeline
from journey.pipeline.schedule import PREDICTION_TYPES


def pipeline(directory: Path | str) -> StableDiffusionPipeline:
    """Return the pipeline of a trained model, with the encoders it was trained with, and LoRA.

        pipeline("artifacts/models/twemoji1600-ldm48-64a1-s0-…")("red apple").images[0]

    Args:
        directory: The model in a store, which also has its latents.

    Raises:
        ValueError: The model works on pixels, or is a flow.
    """
    directory = Path(directory)
    manifest = json.loads((directory / MANIFEST).read_text())
    latents = [parent for parent in manifest["parents"] if parent.startswith(f"{Latents.folder}/")]
    if not latents:
        raise ValueError(f"{directory}: a model of pixels, which needs no pipeline")
    settings = manifest["key_fields"]["model"]
    if settings["prediction"] == "flow":
        raise ValueError(f"{directory}: a flow, which the pipeline's scheduler does not sample")
    if settings["pretrained"]:
        path = locate_pipeline(settings["pretrained"])
        text = TextEncoder.from_pipeline(path, settings["text_length"])
    else:
        text = TextEncoder.minilm(settings["text_length"])
    text_encoder = AutoModel.from_pretrained(text.path, local_files_only=True)
    text_encoder.config.use_attention_mask = text.masked  # read by the pipeline
    noise = describe(SCALED_LINEAR) | settings.get("noise_schedule", {})
    noise |= {
        "num_train_timesteps": settings["num_timesteps"],
        "prediction_type": PREDICTION_TYPES[settings["prediction"]],
        "steps_offset": 1,  # as the pipeline requires; our samplers visit the timestep before
    }
    del noise["type"]
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
