from dataclasses import replace

import pytest
import torch
from conftest import naive_gradient
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from journey.attribution import gradients as module
from journey.attribution.gradients import (
    GradientPlan,
    Objective,
    accelerator_plan,
    activation_bytes,
    choose_plan,
    layers_suffice,
    patches,
    windows,
)
from journey.attribution.outputs import NoiseSamples, sample_noise, with_augmentations
from journey.diffusion.ddpm import DDPM
from journey.diffusion.dit import DiT
from journey.diffusion.network import Guidance
from journey.engine.checks import ConfigError
from journey.engine.workspace import Precision
from journey.pipeline.examples import Examples
from journey.pipeline.schedule import add_noise
from journey.pipeline.settings import Augmentation, Output

LOOPS = [GradientPlan("loop", 2, 6), GradientPlan("loop", 3, 4), GradientPlan("loop", 1, 1)]
VMAPS = [GradientPlan("vmap", 2, 6), GradientPlan("vmap", 5, 6)]
LAYERS = [GradientPlan("layers", 5, 6), GradientPlan("layers", 2, 4), GradientPlan("layers", 1, 1)]
ALL_SAMPLES = [GradientPlan("loop", 1, 6), GradientPlan("vmap", 3, 6), GradientPlan("layers", 2, 4)]


def gradients(objective, examples, noise, plan):
    return torch.cat(list(objective.gradients(examples, noise, plan)))


@pytest.mark.parametrize("plan", [*LOOPS, *VMAPS, *LAYERS], ids=str)
def test_every_plan_is_the_naive_loop(net, linear_schedule, clean, draws, plan):
    expected = torch.stack([naive_gradient(net, linear_schedule, x0, draws) for x0 in clean.x0[:5]])
    ours = gradients(Objective(net, linear_schedule, Precision.fp32), clean[:5], draws, plan)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def conditional() -> UNet2DConditionModel:
    """A network of latents with four channels that reads five tokens of width six."""
    return UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), layers_per_block=1,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=4,
        cross_attention_dim=6, attention_head_dim=2,
    ).eval()  # fmt: skip


def text_examples() -> tuple[Examples, NoiseSamples]:
    """Latents with two captions each, and augmented noise samples."""
    examples = Examples(torch.randn(3, 4, 4, 4), torch.rand(3, 4, 4, 4), torch.randn(3, 2, 5, 6))
    noise = sample_noise((0, 1000), 6, (4, 4, 4), 0, "test")
    augmentations = (Augmentation.both, Augmentation.random)
    return examples, with_augmentations(noise, examples, *augmentations, False, 0, "test")


@pytest.mark.parametrize("plan", ALL_SAMPLES, ids=str)
def test_text_conditional_latents_are_augmented_for_each_noise_sample(linear_schedule, plan):
    torch.manual_seed(0)
    net = conditional()
    examples, noise = text_examples()
    assert noise.mirrored.tolist() == [False, True] * 3
    expected = torch.zeros(3, sum(p.numel() for p in net.parameters()))
    for i in range(3):
        for k in range(6):
            x0 = examples.x0[i] + examples.deviation[i] * noise.latent_noise[k]
            x0 = x0.flip(-1) if k % 2 else x0
            condition = examples.condition[i, noise.caption_index[k]]
            single = noise[k : k + 1]
            expected[i] += naive_gradient(net, linear_schedule, x0, single, condition) / 6
    ours = gradients(Objective(net, linear_schedule, Precision.fp32), examples, noise, plan)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def of_classes(name: str) -> nn.Module:
    """A network of three classes, its weights random: those of a new transformer begin at zero."""
    torch.manual_seed(0)
    model = DDPM(block_out_channels=[8, 16], num_classes=3)
    if name == "transformer":
        model = DiT(num_layers=2, num_attention_heads=2, attention_head_dim=4, num_classes=3)
    network = model.build((1, 8, 8)).eval()
    for p in network.parameters():
        p.data.add_(torch.randn(p.shape), alpha=0.1)
    return network


def labelled(clean: Examples) -> Examples:
    """Five examples of classes, one of them of no class."""
    return replace(clean[:5], condition=torch.tensor([[0], [2], [1], [0], [3]]))


@pytest.mark.parametrize("plan", ALL_SAMPLES, ids=str)
@pytest.mark.parametrize("name", ["U-Net", "transformer"])
def test_networks_of_classes_have_the_gradients_of_the_naive_loop(
    linear_schedule, clean, draws, name, plan
):
    network, examples = of_classes(name), labelled(clean)
    expected = torch.stack([
        naive_gradient(network, linear_schedule, x0, draws, label[0])
        for x0, label in zip(examples.x0, examples.condition, strict=True)
    ])  # fmt: skip
    objective = Objective(network, linear_schedule, Precision.fp32)
    ours = gradients(objective, examples, draws, plan)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
    assert layers_suffice(objective, examples, draws)


def test_a_loop_respects_the_memory_limit(net, linear_schedule, clean, draws):
    objective = Objective(net, linear_schedule, Precision.bf16)
    d = sum(p.numel() for p in net.parameters())
    one_example = 36 * d + 6 * activation_bytes(objective, clean, draws)
    for needed, batch in ((0, 1), (12 * d, 2), (100 * d, 8)):
        plan = choose_plan(objective, clean, draws, (one_example + needed + 1) / 2**30)
        assert plan == GradientPlan("loop", batch, 6)
    with pytest.raises(ConfigError, match=r"compute\.gradient_memory_gib=.*: must be at least"):
        choose_plan(objective, clean, draws, (one_example - 1) / 2**30)


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("normalize", [False, True])
def test_too_little_memory_is_refused_by_name(
    net, linear_schedule, clean, draws, precision, normalize
):
    objective = Objective(net, linear_schedule, precision, normalize=normalize)
    message = r"compute\.gradient_memory_gib=1e-05: must be at least 0\.\d+ for this network"
    with pytest.raises(ConfigError, match=message):
        choose_plan(objective, clean, draws, 1e-5)


def test_chunks_and_blocks_respect_the_activations(net, linear_schedule, clean, draws, monkeypatch):
    half, full = (Objective(net, linear_schedule, p) for p in (Precision.bf16, Precision.fp32))
    assert choose_plan(full, clean, draws, 2.0) == GradientPlan("vmap", 16, 6)
    monkeypatch.setitem(module.ACTIVATIONS, "loop", 4 * activation_bytes(half, clean, draws))
    assert choose_plan(half, clean, draws, 2.0).chunk == 4
    batch_bytes = 2 * 4 * 6 * activation_bytes(full, clean, draws)
    monkeypatch.setitem(module.ACTIVATIONS, "vmap", batch_bytes)
    assert choose_plan(full, clean, draws, 2.0) == GradientPlan("vmap", 4, 6)
    monkeypatch.setitem(module.ACTIVATIONS, "vmap", 1)
    assert choose_plan(full, clean, draws, 2.0) == GradientPlan("vmap", 1, 6), "at least one"


@pytest.mark.parametrize("precision", Precision)
def test_the_plan_depends_on_no_clock_or_number_of_examples(
    net, linear_schedule, clean, draws, precision, monkeypatch
):
    for clock in ("time", "monotonic", "perf_counter", "process_time"):
        for name in (clock, f"{clock}_ns"):
            monkeypatch.setattr(f"time.{name}", lambda: pytest.fail("read a clock"))
    objective = Objective(net, linear_schedule, precision)
    plan = choose_plan(objective, clean, draws, 1.0)
    assert plan.strategy == ("loop" if precision is Precision.bf16 else "vmap")
    assert choose_plan(objective, clean, draws, 64.0) == plan
    assert choose_plan(objective, clean[:3], draws, 1.0) == plan
    assert choose_plan(objective, clean[:3], draws, 64.0) == plan


@pytest.mark.parametrize("precision", Precision)
def test_the_block_of_a_loop_changes_no_bit(net, linear_schedule, clean, draws, precision):
    """So it may follow the available memory."""
    objective = Objective(net, linear_schedule, precision)
    single, whole = (
        gradients(objective, clean[:5], draws, GradientPlan("loop", batch, 4)) for batch in (1, 5)
    )
    assert torch.equal(single, whole)


NORMALIZED = [
    GradientPlan("loop", 2, 1), GradientPlan("vmap", 2, 4), GradientPlan("vmap", 5, 6), *LAYERS
]  # fmt: skip


@pytest.mark.parametrize("plan", NORMALIZED, ids=str)
def test_normalized_gradients_are_the_naive_loop(net, linear_schedule, clean, draws, plan):
    expected = torch.zeros(3, sum(p.numel() for p in net.parameters()))
    for row, x0 in zip(expected, clean.x0[:3], strict=True):
        for single in draws.split(1):
            g = naive_gradient(net, linear_schedule, x0, single)
            row += g / g.norm() / len(draws)
    precisions = (Precision.fp32, Precision.bf16)
    full, half = (Objective(net, linear_schedule, p, normalize=True) for p in precisions)
    ours = gradients(full, clean[:3], draws, plan)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
    assert choose_plan(full, clean, draws, 1.0) == GradientPlan("vmap", 16, 6)
    assert choose_plan(half, clean, draws, 1.0) == GradientPlan("loop", 8, 1), "one norm per sample"


@pytest.mark.parametrize("plan", ALL_SAMPLES, ids=str)
def test_guidance_differentiates_both_predictions(linear_schedule, plan):
    torch.manual_seed(0)
    net = conditional()
    examples = Examples(torch.randn(3, 4, 4, 4), condition=torch.randn(3, 1, 5, 6))
    no_prompt = torch.randn(5, 6)
    noise = sample_noise((0, 1000), 6, (4, 4, 4), 0, "test")
    expected = []
    for x0, (condition,) in zip(examples.x0, examples.condition, strict=True):
        net.zero_grad()
        x_t = add_noise(linear_schedule, x0.expand(6, -1, -1, -1), noise.t, noise.eps)
        without, with_prompt = (
            net(x_t, noise.t, text.expand(6, -1, -1)).sample for text in (no_prompt, condition)
        )
        (noise.eps - (without + 2.5 * (with_prompt - without))).square().mean().backward()
        expected.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    objective = Objective(net, linear_schedule, Precision.fp32, guidance=Guidance(2.5, no_prompt))
    ours = gradients(objective, examples, noise, plan)
    torch.testing.assert_close(ours, torch.stack(expected), rtol=1e-3, atol=1e-5)


class Wrapped(nn.Module):
    """A network whose prediction is changed by a parameter outside of its layers, or by a layer."""

    def __init__(self, net: nn.Module, extra: nn.Module | None) -> None:
        super().__init__()
        self.net, self.extra = net, extra
        if extra is None:
            self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, t, return_dict=False):
        y = self.net(x, t, return_dict=False)[0]
        return (y * self.scale if self.extra is None else self.extra(y),)


class Functional(nn.Module):
    """A layer whose parameters are used without calling it, beside others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return x + nn.functional.conv2d(x, self.conv.weight, self.conv.bias, padding=1)


class Twice(nn.Module):
    """A layer that is called twice: the norm of a sum is not the sum of norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x))


class OneRow(nn.Module):
    """A layer whose inputs are the same for all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 64)

    def forward(self, x):
        return x + self.linear(torch.ones(1, 3, device=x.device)).view(1, 1, 8, 8)


@pytest.mark.parametrize(
    ("extra", "plain", "normalized"),
    [
        (nn.Identity(), True, True),
        (None, False, False),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), False, False),
        (Functional(), False, False),
        (OneRow(), False, False),
        (Twice(), True, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_are_used_only_where_they_have_the_gradients_of_a_loop(
    net, linear_schedule, clean, draws, extra, plain, normalized
):
    network = Wrapped(net, extra)
    for normalize, expected in ((False, plain), (True, normalized)):
        objective = Objective(network, linear_schedule, Precision.bf16, normalize=normalize)
        assert layers_suffice(objective, clean, draws) == expected
        plan = accelerator_plan(objective, clean, draws, 8.0)
        assert plan.strategy == ("layers" if expected else "loop")


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("num_bytes", [1, 2**28])
def test_layers_have_the_gradients_of_a_guided_network_with_labels_and_attention(
    linear_schedule, monkeypatch, normalize, num_bytes
):
    monkeypatch.setattr(module, "LAYER_BYTES", num_bytes)
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16),
        num_class_embeds=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), layers_per_block=1, norm_num_groups=4,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    ).eval()  # fmt: skip
    examples = Examples(torch.randn(3, 1, 8, 8), condition=torch.tensor([[0], [2], [0]]))
    noise, guidance = (
        sample_noise((0, 1000), 4, (1, 8, 8), 0, "test"),
        Guidance(2.5, torch.tensor(3)),
    )
    objective = Objective(
        net, linear_schedule, Precision.fp32, normalize=normalize, guidance=guidance
    )
    assert layers_suffice(objective, examples, noise)
    inputs = (objective, examples, noise)
    ours, expected = (gradients(*inputs, GradientPlan(s, 3, 4)) for s in ("layers", "loop"))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_layers_in_bf16_have_the_direction_of_a_loop(net, linear_schedule, clean, draws, normalize):
    objective = Objective(net, linear_schedule, Precision.bf16, normalize=normalize)
    inputs = (objective, clean[:4], draws)
    ours, loop = (gradients(*inputs, GradientPlan(s, 4, 6)) for s in ("layers", "loop"))
    full = gradients(replace(objective, precision=Precision.fp32), *inputs[1:], LAYERS[0])
    torch.testing.assert_close(ours.norm(dim=1), full.norm(dim=1), rtol=0.02, atol=0)
    for other in (loop, full):
        assert (torch.cosine_similarity(ours, other) > 0.995).all()


def test_windows_are_patches():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 9, 11, generator=random)
    for layer in (
        nn.Conv2d(4, 2, 3, padding=1),
        nn.Conv2d(4, 2, 1),
        nn.Conv2d(4, 2, (3, 5), stride=(2, 1), padding=(1, 2)),
        nn.Conv2d(4, 2, 3, padding=2, dilation=2, stride=3),
    ):
        for images in (x, x.contiguous(memory_format=torch.channels_last), x.expand(3, -1, -1, -1)):
            assert torch.equal(windows(images, layer), patches(images, layer))


def test_an_accelerator_has_as_many_pairs_in_a_pass_as_fit(net, linear_schedule, clean, draws):
    objective = Objective(net, linear_schedule, Precision.bf16)
    normalized = replace(objective, normalize=True)
    d, pair = sum(p.numel() for p in net.parameters()), activation_bytes(objective, clean, draws)
    fixed = 24 * d + module.LAYER_BYTES

    def plan(objective, num_bytes):
        return accelerator_plan(objective, clean, draws, (num_bytes + 1) / 2**30)

    for each in (objective, normalized):
        example = 12 * d + 6 * module.LAYER_COPIES * pair
        assert plan(each, fixed + 3 * example) == GradientPlan("layers", 3, 6)
        assert plan(each, 2**36) == GradientPlan("layers", 1365, 6), "1365 × 6 ≤ 8192"
    little = fixed + 12 * d + 5 * module.LAYER_COPIES * pair
    assert plan(normalized, little) == GradientPlan("layers", 1, 5)
    assert plan(objective, little) == GradientPlan("loop", 8, 6)
    assert plan(objective, 36 * d + 4 * pair) == GradientPlan("loop", 1, 4)
    assert plan(normalized, 36 * d + pair) == GradientPlan("loop", 1, 1)
    message = r"compute\.gradient_memory_gib=.*: must be at least"
    with pytest.raises(ConfigError, match=message):
        plan(objective, 36 * d + pair - 2)


@pytest.mark.parametrize("strategy", ["loop", "vmap", "layers"])
def test_a_gradient_of_zero_has_no_direction(net, linear_schedule, clean, draws, strategy):
    """The stage refuses it, with all rows of a block at once."""
    objective = Objective(net, linear_schedule, Precision.fp32, Output.square, normalize=True)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert gradients(objective, clean[:2], draws, GradientPlan(strategy, 2, 1)).isnan().any()
