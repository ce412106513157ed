"""Schedulers of diffusers, in Python and beside checkpoints: their own x̂0, or refused by field.

The oracle is diffusers: `step(…).pred_original_sample`, or `convert_model_output` of its solvers.
"""

import copy
import dataclasses
import json

import diffusers
import pytest
import torch

from journey import api
from journey.diffusion.checkpoint_files import UnreadableError
from journey.diffusion.ddpm import DDPM
from journey.diffusion.released import compare_scheduler, constructor_defaults
from journey.engine.checks import ConfigError
from journey.pipeline.schedule import BetaSchedule, NoiseSchedule, denoise
from journey.pipeline.settings import Prediction

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers
CPU = torch.device("cpu")
TIMESTEPS = (1, 100, 300, 600, 990)
SAMPLES_ITSELF = ("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "UnCLIP")
SIGMAS = (
    "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
)  # fmt: skip
SOLVERS = (
    "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "SASolver",
)  # fmt: skip
V, X, FLOW = ({"prediction_type": name} for name in ("v_prediction", "sample", "flow_prediction"))
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
ZERO = {"rescale_betas_zero_snr": True}
NO_CLIP = {"clip_sample": False}
BETAS = torch.linspace(1e-3, 0.01, 1000).tolist()

ACCEPTED = [
    *((name, {}) for name in (*SAMPLES_ITSELF, *SIGMAS, *SOLVERS, "PNDM")),
    *((name, V) for name in ("DDPM", "DDIM", *SIGMAS, *SOLVERS, "PNDM")),
    *((name, X) for name in ("DDPM", "DDIM", "UnCLIP", *SOLVERS)),
    *((name, LATENT | NO_CLIP) for name in ("DDPM", "DDIM")),
    *((name, LATENT | V) for name in (*SIGMAS[:3], *SOLVERS, "PNDM")),
    *((name, COSINE) for name in ("DDPM", "DDIM", "EulerDiscrete", "DPMSolverMultistep")),
    *((name, COSINE | V | NO_CLIP) for name in ("DDPM", "DDIM")),
    *((name, ZERO | V) for name in ("DDPM", "DDIM", "EulerDiscrete", "DPMSolverMultistep")),
    ("DDPM", ZERO | X),
    ("DDPM", ZERO | V | COSINE | NO_CLIP),
    ("DDPM", {"beta_schedule": "sigmoid"}),
    ("DDPM", {"num_train_timesteps": 4000}),
    ("DDIM", {"num_train_timesteps": 4000} | LATENT),
    ("DDPM", {"clip_sample_range": 2.5}),
    ("DDIM", {"clip_sample_range": 0.5} | V),
    ("HeunDiscrete", {"clip_sample": True, "clip_sample_range": 0.7}),
    ("DDPM", {"variance_type": "fixed_large", "timestep_spacing": "trailing"}),
    ("DDIM", {"steps_offset": 1, "set_alpha_to_one": False} | NO_CLIP),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": False}),
    # Schedules that no setting has: in Python only.
    ("DDPM", {"trained_betas": BETAS}),
    ("EulerDiscrete", {"trained_betas": BETAS} | V),
    ("DDPM", {"beta_schedule": "laplace"} | NO_CLIP),
    *((name, {"use_flow_sigmas": True} | FLOW) for name in SOLVERS),
    ("DPMSolverMultistep", {"use_flow_sigmas": True}),
    ("FlowMatchEulerDiscrete", {}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    ("FlowMatchHeunDiscrete", {}),
]  # fmt: skip
PYTHON_ONLY = ("trained_betas", "laplace", "use_flow_sigmas", "FlowMatch")


def label(case) -> str:
    return f"{case[0]} {str(case[1])[:70]}"


def built(name: str, config: dict):
    return getattr(diffusers, f"{name}Scheduler")(**config)


def with_timesteps(name: str, config: dict):
    """Return a scheduler that visits (nearly) all timesteps, which takes some of them a second."""
    scheduler = built(name, config)
    if name in SOLVERS:
        scheduler.set_timesteps(999)  # all timesteps but one
    elif name == "FlowMatchHeunDiscrete":
        scheduler.set_timesteps(2)
    elif name not in ("UnCLIP", "FlowMatchEulerDiscrete"):
        scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    return scheduler


def their_estimate(name: str, scheduler, t: int, x_t, output):
    """Return x̂0 as a new scheduler computes it; x_t has signal and noise of a `Schedule`."""
    if name == "FlowMatchEulerDiscrete":  # one step to the clean example
        sigma, shift = t / 1000, scheduler.config.shift
        scheduler.set_timesteps(sigmas=[sigma / (shift - (shift - 1) * sigma)])
        assert scheduler.timesteps.tolist() == pytest.approx([t])
        return scheduler.step(output, scheduler.timesteps[0], x_t).prev_sample
    if name == "FlowMatchHeunDiscrete":  # its last step
        scheduler._step_index = 2
        return scheduler.step(output, scheduler.timesteps[-1], x_t).prev_sample
    if name in SAMPLES_ITSELF:
        return scheduler.step(output, t, x_t).pred_original_sample
    if name == "PNDM":  # it steps to ᾱ = 1
        scheduler.final_alpha_cumprod = torch.tensor(1.0)
        return scheduler._get_prev_sample(x_t, t, -1, output)
    if name in SIGMAS:
        step = scheduler.timesteps[scheduler.timesteps == t][0]
        scaled = x_t / scheduler.alphas_cumprod[t].sqrt()
        torch.testing.assert_close(scheduler.scale_model_input(scaled, step), x_t)
        return scheduler.step(output, step, scaled).pred_original_sample
    if scheduler.config.use_flow_sigmas:
        scheduler.sigmas[0] = t / 1000
        scheduler._step_index = 0
    else:
        scheduler._init_step_index(torch.tensor(t))
        assert int(scheduler.timesteps[scheduler.step_index]) == t
    converted = scheduler.convert_model_output(output, sample=x_t)
    if name != "DEISMultistep":
        return converted
    a, b = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index])
    return (x_t - b * converted) / a  # it converts to ε


def example(t: int):
    random = torch.Generator().manual_seed(t)
    x_t, output = torch.randn(2, 1, 3, 4, 4, generator=random)
    return x_t, output


def with_overrides(model: DDPM, words: list[str]) -> DDPM:
    """Return a model with the settings that a message advises."""
    for word in words:
        setting, _, text = word.removeprefix("model.").partition("=")
        *group, name = setting.split(".")
        value = json.loads(text) if name not in ("prediction", "beta_schedule") else text
        value = Prediction(text) if name == "prediction" else value
        value = BetaSchedule(text) if name == "beta_schedule" else value
        if group:
            model.noise_schedule = dataclasses.replace(model.noise_schedule, **{name: value})
        else:
            setattr(model, name, value)
    return model


def saved(name: str, config: dict, directory):
    built(name, config).save_pretrained(directory)
    return directory / "scheduler_config.json"


@pytest.mark.parametrize(("name", "config"), ACCEPTED, ids=map(label, ACCEPTED))
def test_a_scheduler_gives_its_own_estimate_of_x0_in_python_and_by_settings(name, config, tmp_path):
    schedules, path = [api._schedule(built(name, config), "cpu")], saved(name, config, tmp_path)
    if any(word in f"{name} {config}" for word in PYTHON_ONLY):
        with pytest.raises(UnreadableError, match=r"trained_betas|laplace|of a flow"):
            compare_scheduler(DDPM(), path)
    else:
        model = with_overrides(DDPM(), [word for _, word in compare_scheduler(DDPM(), path)])
        model.check("model")
        assert compare_scheduler(model, path) == []
        schedules.append(model.schedule(CPU))
    scheduler = with_timesteps(name, config)
    for t in (1,) if name == "FlowMatchHeunDiscrete" else TIMESTEPS:
        x_t, output = example(t)
        theirs = their_estimate(name, copy.deepcopy(scheduler), t, x_t, output)
        for schedule in schedules:
            ours, _ = denoise(schedule, x_t, torch.tensor([t]), output)
            # diffusers has float32 tables, whose rounding is divided by the signal.
            atol = 1e-4 + 1e-4 * float(1 / schedule.signal[t])
            message = f"{name} {config} {t}"
            torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=atol, msg=message)


REFUSED = [
    ("DDPM", {"thresholding": True}, "thresholding=True is not supported, only False"),
    ("DPMSolverMultistep", {"thresholding": True}, "thresholding=True"),
    ("DDPM", {"variance_type": "learned_range"}, "variance_type=learned_range"),
    ("DPMSolverMultistep", {"variance_type": "learned"}, "variance_type=learned"),
    ("DDPM", ZERO, "prediction_type=epsilon gives no x̂0 with rescale_betas_zero_snr"),
    ("EulerDiscrete", {"timestep_type": "continuous", "sigma_min": 0.1, "sigma_max": 700.0} | V,
     "timestep_type=continuous"),
    ("DPMSolverMultistep", FLOW, "prediction_type=flow_prediction is not one of epsilon, v_"),
    ("DPMSolverMultistep", {"use_flow_sigmas": True} | V, "prediction_type=v_prediction"),
    ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, "invert_sigmas=True"),
    *((name, {}, f"{name}Scheduler has no known schedule") for name in (
        "LCM", "TCD", "EDMEuler", "EDMDPMSolverMultistep", "DDIMInverse",
        "CMStochasticIterative", "ScoreSdeVe", "DDPMWuerstchen", "RePaint", "IPNDM",
        "CogVideoXDDIM", "CogVideoXDPM", "DPMSolverMultistepInverse",
    )),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "message"), REFUSED, ids=map(label, REFUSED))
def test_a_scheduler_whose_estimate_is_another_is_refused_by_field(name, config, message, tmp_path):
    with pytest.raises(ConfigError, match=f"^scheduler={name}Scheduler: {message}.*Schedule$"):
        api._schedule(built(name, config), "cpu")
    with pytest.raises(UnreadableError, match=message):
        compare_scheduler(DDPM(), saved(name, config, tmp_path))


def test_the_zero_network_with_velocity_prediction_estimates_the_scaled_noisy_image(tmp_path):
    """A last layer of zeros: x̂0_t = √ᾱ_t x_t, which noise prediction misses by 1/√ᾱ_t."""
    path = saved("DDPM", V | NO_CLIP, tmp_path)
    differences = compare_scheduler(DDPM(), path)
    assert [difference for difference, _ in differences] == [
        "clip_sample=false, not true", "prediction_type=v_prediction, not noise",
    ]  # fmt: skip
    schedule = with_overrides(DDPM(), [word for _, word in differences]).schedule(CPU)
    for t in (600, 300, 100):
        x_t, _ = example(t)
        x0_hat, _ = denoise(schedule, x_t, torch.tensor([t]), torch.zeros_like(x_t))
        torch.testing.assert_close(x0_hat, schedule.signal[t] * x_t)


CONFIGS = [
    ({"_class_name": "DDPMScheduler", "predict_epsilon": False}, "predict_epsilon=False is no fi"),
    ({"beta_schedule": "linear"}, "a scheduler without _class_name"),
    ({"_class_name": "DDPMScheduler", "beta_schedule": "exp"}, "beta_schedule=exp is not one of"),
    ({"_class_name": "DDPMScheduler", "prediction_type": ["epsilon"]}, "prediction_type=.* is not"),
    ({"_class_name": ["DDPMScheduler"]}, "has no known schedule"),
    ({"_class_name": "NoScheduler"}, "NoScheduler has no known schedule"),
    ([], "scheduler_config.json is not a JSON object"),
    ("{", "scheduler_config.json cannot be read"),
    ("version https://git-lfs.github.com/spec/v1", "a Git LFS pointer; run git lfs pull"),
]


@pytest.mark.parametrize(("config", "message"), CONFIGS)
def test_a_config_that_no_scheduler_wrote_is_refused(config, message, tmp_path):
    path = tmp_path / "scheduler_config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(UnreadableError, match=message):
        compare_scheduler(DDPM(), path)


def test_fields_that_a_scheduler_kept_from_another_class_have_no_effect(tmp_path):
    """SD 1.5 was released with PNDM and `clip_sample`, which PNDM does not have."""
    config = {"_class_name": "PNDMScheduler", "clip_sample": True, "skip_prk_steps": True, **LATENT}
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(config))
    scaled = NoiseSchedule(BetaSchedule.scaled_linear, 0.00085, 0.012, clip_sample=False)
    assert compare_scheduler(DDPM(noise_schedule=scaled), path) == []


def test_fields_that_a_config_leaves_out_have_the_defaults_of_its_class(tmp_path):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "HeunDiscreteScheduler"}))
    fields = {difference.split("=")[0] for difference, _ in compare_scheduler(DDPM(), path)}
    assert fields == {"beta_start", "beta_end", "clip_sample"}


@pytest.mark.parametrize("name", ["DDPM", "UniPCMultistep", "EulerDiscrete"])
def test_the_defaults_of_a_class_are_read_as_python_has_them(name):
    config = {k: v for k, v in built(name, {}).config.items() if not k.startswith("_")}
    assert constructor_defaults(f"{name}Scheduler") == config
