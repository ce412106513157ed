import pytest
import torch
from conftest import naive_gradient
from diffusers import UNet2DConditionModel

from journey.attribution.gradients import Objective, Plan, activation_bytes, candidates, choose
from journey.config import ConfigError, Gradient, Precision
from journey.diffusion.examples import Examples

PLANS = [Plan("loop", 2, 6), Plan("loop", 3, 4), Plan("loop", 1, 1), Plan("vmap", 2, 6), Plan("vmap", 5, 6)]


def gradients(objective, examples, draws, plan):
    return torch.cat(list(objective.gradients(examples, draws, plan)))


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_plan_is_the_naive_loop(net, linear_schedule, clean, draws, plan):
    expected = torch.stack([naive_gradient(net, linear_schedule, x0, draws) for x0 in clean.x0[:5]])
    ours = gradients(Objective(net, linear_schedule, Precision.fp32), clean[:5], draws, plan)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("plan", [Plan("loop", 1, 6), Plan("vmap", 3, 6)], ids=str)
def test_a_conditional_model_on_latents_needs_nothing_else(linear_schedule, plan):
    """The seam for text-to-image: four channels, a context, another architecture."""
    torch.manual_seed(0)
    net = UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6, attention_head_dim=2,
    ).eval()  # fmt: skip
    from journey.attribution.output import window_draws

    draws = window_draws((0, 1000), 6, (4, 4, 4), 0, "test")
    examples = Examples(torch.randn(3, 4, 4, 4), torch.randn(3, 5, 6))
    pairs = zip(examples.x0, examples.context, strict=True)
    expected = torch.stack([naive_gradient(net, linear_schedule, x0, draws, context) for x0, context in pairs])
    ours = gradients(Objective(net, linear_schedule, Precision.fp32), examples, draws, plan)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_bf16_keeps_the_direction(net, linear_schedule, clean, draws):
    full, half = (gradients(Objective(net, linear_schedule, p), clean[:4], draws, Plan("loop", 4, 6)) for p in Precision)
    assert not torch.equal(full, half)
    assert (torch.cosine_similarity(full, half) > 0.99).all()


def test_plans_keep_to_the_memory_budget(net, linear_schedule, clean, draws):
    objective = Objective(net, linear_schedule, Precision.fp32)
    d, per_draw = sum(p.numel() for p in net.parameters()), activation_bytes(objective, clean, draws)
    one_draw, one_example = 32 * d + per_draw, 32 * d + 6 * per_draw
    shapes = [
        [(p.strategy, p.batch, p.chunk) for p in candidates(objective, clean, draws, (need + 1) / 2**30)]
        for need in (one_draw, one_example, one_example + 12 * d)
    ]
    assert shapes == [[("loop", 1, 1)], [("loop", 1, 6)], [("loop", 2, 6)]]
    assert {p.strategy for p in candidates(objective, clean, draws, 1.0)} == {"loop", "vmap"}
    with pytest.raises(ConfigError, match=r"compute\.gradient_memory_gib=1e-05"):
        choose(objective, clean, draws, Gradient.auto, 1e-5)


def test_choice_is_one_of_the_candidates(net, linear_schedule, clean, draws):
    objective = Objective(net, linear_schedule, Precision.fp32)
    assert choose(objective, clean, draws, Gradient.auto, 1.0) in candidates(objective, clean, draws, 1.0)
    assert choose(objective, clean, draws, Gradient.loop, 1.0).strategy == "loop"


@pytest.mark.parametrize("plan", [Plan("loop", 2, 1), Plan("vmap", 2, 4), Plan("vmap", 5, 6)], ids=str)
def test_normalised_draws_are_the_naive_loop(net, linear_schedule, clean, draws, plan):
    expected = torch.zeros(3, sum(p.numel() for p in net.parameters()))
    for row, x0 in zip(expected, clean.x0[:3], strict=True):
        for one in draws.split(1):
            g = naive_gradient(net, linear_schedule, x0, one)
            row += g / g.norm() / len(draws)
    objective = Objective(net, linear_schedule, Precision.fp32, normalize=True)
    torch.testing.assert_close(gradients(objective, clean[:3], draws, plan), expected, rtol=1e-3, atol=1e-5)
    assert {p.strategy for p in candidates(objective, clean, draws, 1.0)} == {"loop", "vmap"}
    assert all(p.chunk == 1 for p in candidates(objective, clean, draws, 1.0) if p.strategy == "loop")
