"""Small real things: real digits, real diffusers networks, and the naive loops that everything is compared with."""

import pytest
import torch

from journey import config, data, stages, store
from journey.attribution.output import Draws, window_draws
from journey.diffusion import examples, network, schedule

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> data.ImageSet:
    return data.load(config.Digits(num_train=200))[0]


@pytest.fixture(scope="session")
def model() -> config.DDPM:
    return config.DDPM(block_out_channels=[8, 16])


@pytest.fixture(scope="session")
def clean(digits, model) -> examples.Examples:
    return examples.encode(digits, model)


@pytest.fixture(scope="session")
def linear_schedule() -> schedule.Schedule:
    return schedule.linear_schedule(1000, clip=True, device=torch.device("cpu"))


@pytest.fixture
def net(model) -> torch.nn.Module:
    torch.manual_seed(0)
    return network.build(model, (1, 8, 8)).eval()


@pytest.fixture(scope="session")
def draws() -> Draws:
    return window_draws((0, 1000), 6, (1, 8, 8), seed=0, purpose="test")


def naive_loss(net, noise_schedule, x0, t, eps, context=None) -> torch.Tensor:
    """The denoising loss of one example and one draw, written out."""
    alpha_bar = noise_schedule.alpha_bar[t].float()
    x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    inputs = (x_t[None], t[None]) if context is None else (x_t[None], t[None], context[None])
    return ((eps - net(*inputs).sample[0]) ** 2).mean()


def naive_gradient(net, noise_schedule, x0, draws, context=None) -> torch.Tensor:
    """The gradient of one example: one backward pass per draw, averaged. [d]"""
    total = 0
    for t, eps in zip(draws.t, draws.eps, strict=True):
        net.zero_grad()
        naive_loss(net, noise_schedule, x0, t, eps, context).backward()
        total = total + torch.cat([p.grad.flatten() for p in net.parameters()])
    return total / len(draws)


def journey(**changes) -> config.GradientMethod:
    """Journey-TRAK with everything small."""
    draws = {"num_draws": 8, "stratified": True, "antithetic": False, "train_window": 0}
    settings = {"num_checkpoints": 1, "precision": config.Precision.fp32, **draws}
    kernel = {"projection": config.Projection.sparse, "projection_dim": 256, "damping": [0.1, 1.0]}
    return config.GradientMethod(**{**settings, **kernel, **changes})


def small_run(**changes) -> config.Config:
    """A run of seconds: the real stages on 60 digits and 8-channel networks."""
    settings = {
        "dataset": config.Digits(num_train=60),
        "model": config.DDPM(block_out_channels=[8, 16]),
        "training": config.Training(num_steps=150, batch_size=16, warmup_steps=4),
        "sampling": config.Sampling(config.Sampler.ddim, 50, num_queries=3, steps=[600, 300]),
        "method": {"journey": journey()},
        "evaluation": config.LDS(num_subsets=6, num_draws=4, num_bootstrap=100, paired_steps=[600, 300]),
        "compute": config.Compute(gradient=config.Gradient.loop, checkpoint_seconds=0),
    }
    return config.Config(**{**settings, **changes})


@pytest.fixture
def workspace(tmp_path):
    return stages.Workspace(store.Store(tmp_path / "store"), small_run().compute, config.JSONLines(), "test")
