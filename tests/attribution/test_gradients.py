import pytest
import torch
from conftest import naive_gradient
from diffusers import UNet2DConditionModel

from journey.attribution import gradients as module
from journey.attribution.gradients import GradientPlan, Objective, activation_bytes, choose_plan
from journey.attribution.outputs import sample_noise, with_augmentations
from journey.diffusion.network import Guidance
from journey.engine.checks import ConfigError
from journey.engine.workspace import Precision
from journey.pipeline.examples import Examples
from journey.pipeline.schedule import add_noise
from journey.pipeline.settings import Augmentation

PLANS = [
    GradientPlan("loop", 2, 6),
    GradientPlan("loop", 3, 4),
    GradientPlan("loop", 1, 1),
    GradientPlan("vmap", 2, 6),
    GradientPlan("vmap", 5, 6),
]


def gradients(objective, examples, draws, plan):
    return torch.cat(list(objective.gradients(examples, draws, plan)))


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_plan_is_the_naive_loop(net, linear_schedule, clean, draws, plan):
    expected = torch.stack([naive_gradient(net, linear_schedule, x0, draws) for x0 in clean.x0[:5]])
    ours = gradients(Objective(net, linear_schedule, Precision.fp32), clean[:5], draws, plan)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def conditional() -> UNet2DConditionModel:
    """A network of latents with four channels that reads five tokens of width six."""
    return UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6, attention_head_dim=2,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("plan", [GradientPlan("loop", 1, 6), GradientPlan("vmap", 3, 6)], ids=str)
def test_a_conditional_model_on_latents_needs_nothing_else(linear_schedule, plan):
    """Text-to-image: another sample of the latents and another caption for each draw, another architecture."""
    torch.manual_seed(0)
    net = conditional()
    examples = Examples(torch.randn(3, 4, 4, 4), torch.rand(3, 4, 4, 4), torch.randn(3, 2, 5, 6))
    draws = sample_noise((0, 1000), 6, (4, 4, 4), 0, "test")
    draws = with_augmentations(
        draws, examples, Augmentation.both, Augmentation.random, False, 0, "test"
    )
    assert draws.mirrored.tolist() == [False, True] * 3
    expected = []
    for i in range(3):
        rows = []
        for k in range(6):
            x0 = examples.x0[i] + examples.deviation[i] * draws.xi[k]
            x0 = x0.flip(-1) if k % 2 else x0
            context = examples.context[i, draws.caption[k]]
            rows.append(naive_gradient(net, linear_schedule, x0, draws[k : k + 1], context))
        expected.append(torch.stack(rows).mean(0))
    ours = gradients(Objective(net, linear_schedule, Precision.fp32), examples, draws, plan)
    torch.testing.assert_close(ours, torch.stack(expected), rtol=1e-3, atol=1e-5)


def test_bf16_keeps_the_direction(net, linear_schedule, clean, draws):
    full, half = (
        gradients(Objective(net, linear_schedule, p), clean[:4], draws, GradientPlan("loop", 4, 6))
        for p in Precision
    )
    assert not torch.equal(full, half)
    assert (torch.cosine_similarity(full, half) > 0.99).all()


def test_a_loop_keeps_to_the_memory_budget(net, linear_schedule, clean, draws):
    objective = Objective(net, linear_schedule, Precision.bf16)
    d, per_draw = (
        sum(p.numel() for p in net.parameters()),
        activation_bytes(objective, clean, draws),
    )
    one_example = 36 * d + 6 * per_draw
    needs = [one_example, one_example + 12 * d, one_example + 100 * d]
    chosen = [choose_plan(objective, clean, draws, (need + 1) / 2**30) for need in needs]
    assert chosen == [
        GradientPlan("loop", 1, 6),
        GradientPlan("loop", 2, 6),
        GradientPlan("loop", 8, 6),
    ]
    with pytest.raises(ConfigError, match=r"compute\.gradient_memory_gib=.*: must be at least"):
        choose_plan(objective, clean, draws, (one_example - 1) / 2**30)


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("normalize", [False, True])
def test_a_budget_that_is_too_small_is_refused_by_name(
    net, linear_schedule, clean, draws, precision, normalize
):
    with pytest.raises(
        ConfigError,
        match=r"compute\.gradient_memory_gib=1e-05: must be at least 0\.\d+ for this network",
    ):
        choose_plan(
            Objective(net, linear_schedule, precision, normalize=normalize), clean, draws, 1e-5
        )


def test_chunks_and_blocks_keep_to_the_activations(net, linear_schedule, clean, draws, monkeypatch):
    half, full = (Objective(net, linear_schedule, p) for p in (Precision.bf16, Precision.fp32))
    assert choose_plan(full, clean, draws, 2.0) == GradientPlan("vmap", 16, 6)
    monkeypatch.setitem(module.ACTIVATIONS, "loop", 4 * activation_bytes(half, clean, draws))
    assert choose_plan(half, clean, draws, 2.0).chunk == 4
    monkeypatch.setitem(
        module.ACTIVATIONS, "vmap", 2 * 4 * 6 * activation_bytes(full, clean, draws)
    )
    assert choose_plan(full, clean, draws, 2.0) == GradientPlan("vmap", 4, 6)
    monkeypatch.setitem(module.ACTIVATIONS, "vmap", 1)
    assert choose_plan(full, clean, draws, 2.0) == GradientPlan("vmap", 1, 6), "at least one"


@pytest.mark.parametrize("precision", Precision)
def test_the_choice_follows_from_what_is_addressed_and_no_clock(
    net, linear_schedule, clean, draws, precision, monkeypatch
):
    for clock in (
        "time",
        "monotonic",
        "perf_counter",
        "process_time",
        "time_ns",
        "monotonic_ns",
        "perf_counter_ns",
    ):
        monkeypatch.setattr(f"time.{clock}", lambda: pytest.fail("looked at a clock"))
    objective = Objective(net, linear_schedule, precision)
    chosen = [
        choose_plan(objective, some, draws, memory)
        for some in (clean, clean[:3])
        for memory in (1.0, 64.0)
    ]
    assert chosen == chosen[:1] * 4
    assert chosen[0].strategy == ("vmap" if precision is Precision.fp32 else "loop")


def test_the_block_of_a_loop_changes_no_bit(net, linear_schedule, clean, draws):
    """So it may follow the memory there is."""
    for precision in Precision:
        objective = Objective(net, linear_schedule, precision)
        one, all_five = (
            gradients(objective, clean[:5], draws, GradientPlan("loop", batch, 4))
            for batch in (1, 5)
        )
        assert torch.equal(one, all_five)


@pytest.mark.parametrize(
    "plan",
    [GradientPlan("loop", 2, 1), GradientPlan("vmap", 2, 4), GradientPlan("vmap", 5, 6)],
    ids=str,
)
def test_normalised_draws_are_the_naive_loop(net, linear_schedule, clean, draws, plan):
    expected = torch.zeros(3, sum(p.numel() for p in net.parameters()))
    for row, x0 in zip(expected, clean.x0[:3], strict=True):
        for one in draws.split(1):
            g = naive_gradient(net, linear_schedule, x0, one)
            row += g / g.norm() / len(draws)
    objective = Objective(net, linear_schedule, Precision.fp32, normalize=True)
    torch.testing.assert_close(
        gradients(objective, clean[:3], draws, plan), expected, rtol=1e-3, atol=1e-5
    )
    assert choose_plan(objective, clean, draws, 1.0) == GradientPlan("vmap", 16, 6)
    in_half = Objective(net, linear_schedule, Precision.bf16, normalize=True)
    assert choose_plan(in_half, clean, draws, 1.0) == GradientPlan("loop", 8, 1), (
        "a draw at a time, for each has a norm of its own"
    )


@pytest.mark.parametrize("plan", [GradientPlan("loop", 1, 6), GradientPlan("vmap", 3, 6)], ids=str)
def test_a_guided_prediction_has_the_gradient_of_both_of_its_parts(linear_schedule, plan):
    torch.manual_seed(0)
    net = conditional()
    examples, nothing = (
        Examples(torch.randn(3, 4, 4, 4), context=torch.randn(3, 1, 5, 6)),
        torch.randn(5, 6),
    )
    draws = sample_noise((0, 1000), 6, (4, 4, 4), 0, "test")
    expected = []
    for x0, (context,) in zip(examples.x0, examples.context, strict=True):
        net.zero_grad()
        x_t = add_noise(linear_schedule, x0.expand(6, -1, -1, -1), draws.t, draws.eps)
        without, with_prompt = (
            net(x_t, draws.t, some.expand(6, -1, -1)).sample for some in (nothing, context)
        )
        (draws.eps - (without + 2.5 * (with_prompt - without))).square().mean().backward()
        expected.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    objective = Objective(net, linear_schedule, Precision.fp32, guidance=Guidance(2.5, nothing))
    torch.testing.assert_close(
        gradients(objective, examples, draws, plan), torch.stack(expected), rtol=1e-3, atol=1e-5
    )
