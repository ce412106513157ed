"""Features by Kronecker projections against the exact gradient, projected by the explicit matrices."""

import dataclasses

import pytest
import torch
from test_gradients import conditional
from torch import nn

from journey.attribution.ekfac import _put, ekfac_batches, estimate_ekfac
from journey.attribution.features import whitened
from journey.attribution.gradients import GradientPlan, Objective
from journey.attribution.kronecker import kronecker_features, margins, project_layers_kfac
from journey.attribution.logra import (
    feature_dimension,
    project_layers,
    projected_layers,
    random_projection,
)
from journey.attribution.outputs import sample_noise, with_augmentations
from journey.diffusion.ddpm import DDPM
from journey.diffusion.network import Guidance
from journey.engine.checks import ConfigError
from journey.engine.workspace import Precision
from journey.pipeline.examples import Examples
from journey.pipeline.settings import Augmentation, Output

PLANS = [
    GradientPlan("kronecker", 5, 6),
    GradientPlan("kronecker", 2, 6),
    GradientPlan("kronecker", 1, 4),
    GradientPlan("kronecker", 3, 1),
]


def explicit(network, kronecker, gradients) -> torch.Tensor:
    """φ of gradients [B, d] of all parameters, by R_out G R_inᵀ of every layer's matrix, its parameters side by side."""
    sizes = {name: p.shape for name, p in network.named_parameters()}
    parts = dict(
        zip(sizes, gradients.split([shape.numel() for shape in sizes.values()], 1), strict=True)
    )
    blocks = []
    for name, adapter in projected_layers(kronecker).items():
        own = [parts[key] for key in (f"{name}.weight", f"{name}.bias") if key in parts]
        matrix = torch.cat(
            [part.unflatten(1, (len(adapter.layer.weight), -1)) for part in own], 2
        )  # [B, out, in + 1]
        kronecker_product = torch.kron(
            adapter.outer, adapter.inner.matrix
        )  # [rows out × rows in, out × (in + 1)]
        blocks.append(matrix.flatten(1) @ kronecker_product.T)
    return torch.cat(blocks, 1)


def exact(network, schedule, examples, draws, **changes) -> torch.Tensor:
    """Gradients of all parameters, one backward pass for each. [B, d]"""
    objective = Objective(network, schedule, Precision.fp32, **changes)
    return torch.cat(
        list(objective.gradients(examples, draws, GradientPlan("loop", 1, len(draws))))
    )


def ours(network, schedule, examples, draws, plan, **changes) -> torch.Tensor:
    return torch.cat(
        list(
            kronecker_features(
                Objective(network, schedule, Precision.fp32, **changes), examples, draws, plan
            )
        )
    )


class Everything(nn.Module):
    """Every kind of layer as U-Nets have it, and as they do not: stride, dilation, groups, no bias, wide kernels, tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.down = nn.Conv2d(8, 8, (3, 5), stride=2, padding=(1, 2), bias=False)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.pointwise = nn.Conv2d(12, 8, 1)
        self.time = nn.Linear(1, 8)
        self.attention_norm = nn.LayerNorm(8)
        self.query, self.key, self.value = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.out = nn.Linear(8, 8)
        self.conv_out = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x, t, return_dict=True):
        x = self.down(torch.nn.functional.silu(self.norm(self.conv_in(x))))
        x = self.dilated(x) + self.time(t[:, None] / 1000)[:, :, None, None]
        x = self.pointwise(torch.nn.functional.silu(self.grouped(x)))
        tokens = self.attention_norm(x.flatten(2).mT)
        attended = nn.functional.scaled_dot_product_attention(
            self.query(tokens), self.key(tokens), self.value(tokens)
        )
        x = x + self.out(attended).mT.unflatten(2, x.shape[2:])
        return (self.conv_out(nn.functional.interpolate(x, scale_factor=2)),)


def networks() -> dict[str, nn.Module]:
    """With attention in the middle and below, and with every kind of layer."""
    torch.manual_seed(0)
    return {
        "attention": DDPM(
            block_out_channels=[8, 16], attention_blocks=[1], mid_block_attention=True
        )
        .build((1, 8, 8))
        .eval(),
        "everything": Everything(),
    }


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("name", ["attention", "everything"])
def test_is_the_exact_gradient_by_the_explicit_matrix(linear_schedule, clean, draws, name, plan):
    network = networks()[name]
    kronecker = project_layers(network, 4, 0, "checkpoint 0")
    expected = explicit(network, kronecker, exact(network, linear_schedule, clean[:5], draws))
    assert expected.shape == (5, feature_dimension(kronecker))
    torch.testing.assert_close(
        ours(kronecker, linear_schedule, clean[:5], draws, plan), expected, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize(
    "changes",
    [{"output": Output.square}, {"output": Output.mean}, {"output": Output.absolute}],
    ids=str,
)
@pytest.mark.parametrize("region", [(), (0, 0, 4, 6)])
def test_is_so_of_every_output_and_region(net, linear_schedule, clean, draws, changes, region):
    kronecker = project_layers(net, 4, 0, "checkpoint 0")
    expected = explicit(
        net, kronecker, exact(net, linear_schedule, clean[:3], draws, region=region, **changes)
    )
    found = ours(kronecker, linear_schedule, clean[:3], draws, PLANS[0], region=region, **changes)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_is_so_of_text_to_image_with_and_without_guidance(linear_schedule, scale):
    torch.manual_seed(0)
    network = conditional()
    kronecker = project_layers(network, 4, 0, "checkpoint 0")
    examples = Examples(torch.randn(3, 4, 4, 4), torch.rand(3, 4, 4, 4), torch.randn(3, 2, 5, 6))
    draws = with_augmentations(
        sample_noise((0, 1000), 6, (4, 4, 4), 0, "test"),
        examples,
        Augmentation.both,
        Augmentation.random,
        False,
        0,
        "test",
    )
    guidance = None if scale == 1 else Guidance(scale, torch.randn(5, 6))
    expected = explicit(
        network, kronecker, exact(network, linear_schedule, examples, draws, guidance=guidance)
    )
    for plan in PLANS:
        found = ours(kronecker, linear_schedule, examples, draws, plan, guidance=guidance)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def estimated(linear_schedule, clean):
    """A network with attention, and its curvature."""
    network = networks()["attention"]
    predict = Objective(network, linear_schedule, Precision.fp32).predict()
    return network, estimate_ekfac(
        network, predict, linear_schedule, lambda: ekfac_batches(clean[:64], 1000, 0, 16)
    )


def test_whitened_they_are_the_exact_gradient_by_the_explicit_matrix(
    estimated, linear_schedule, clean, draws
):
    network, of = estimated
    kronecker = project_layers_kfac(network, of, 0.1, 3, 0, "checkpoint 0")
    assert not any("norm" in name for name in projected_layers(kronecker)), "which are held fixed"
    expected = explicit(network, kronecker, exact(network, linear_schedule, clean[:5], draws))
    found = ours(kronecker, linear_schedule, clean[:5], draws, PLANS[1])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_with_all_rows_they_are_those_of_ekfac_where_its_eigenvalues_are_a_product(
    estimated, linear_schedule, clean, draws
):
    """And its λ is 0 but for rounding, for Λ + λ is none."""
    network, of = estimated
    products = of.eigenvalues.clone()
    for layer in of.layers.values():
        a, b = margins(layer.matrix(products[None])[0])
        _put(products, layer, torch.outer(b + 0.1 * b.mean(), a + 0.1 * a.mean()))
    of = dataclasses.replace(of, eigenvalues=products)
    phi = ours(
        project_layers_kfac(network, of, 1e-9, 10_000, 0, "any"),
        linear_schedule,
        clean[:5],
        draws,
        PLANS[0],
    )
    expected = whitened(lambda g: g, of, (1e-9,), 4)(
        exact(network, linear_schedule, clean[:5], draws)
    )[:, 0]
    assert phi.shape[1] == of.eigenvalues.isfinite().sum()
    torch.testing.assert_close(phi @ phi.T, expected @ expected.T, rtol=5e-3, atol=1e-4)


def test_margins_are_those_of_the_values():
    values = torch.rand(4, 7)
    a, b = margins(values)
    torch.testing.assert_close(torch.outer(b, a).sum(0), values.sum(0))
    torch.testing.assert_close(torch.outer(b, a).sum(1), values.sum(1))
    assert not margins(torch.zeros(2, 3))[0].any(), "of a layer that does nothing"


def test_the_network_is_what_it_was(net, linear_schedule, clean, draws):
    kronecker = project_layers(net, 4, 0, "checkpoint 0")
    x, t = clean.x0[:2], torch.tensor([3, 500])
    kept = [p.clone() for p in net.parameters()]
    torch.testing.assert_close(kronecker(x, t).sample, net(x, t).sample)
    ours(kronecker, linear_schedule, clean[:2], draws, PLANS[0])
    assert not projected_layers(net)
    assert all(
        torch.equal(p, before) and p.requires_grad
        for p, before in zip(net.parameters(), kept, strict=True)
    )
    assert {p.data_ptr() for p in net.parameters()} == {
        p.data_ptr() for p in kronecker.parameters()
    }, "no second copy"


def test_many_rows_leave_the_gradient_as_it_is(net, linear_schedule, clean, draws):
    kronecker = project_layers(net, 10_000, 0, "checkpoint 0")
    gradients = exact(net, linear_schedule, clean[:4], draws)
    phi = ours(kronecker, linear_schedule, clean[:4], draws, PLANS[0])
    torch.testing.assert_close(phi @ phi.T, gradients @ gradients.T, rtol=1e-3, atol=1e-5)


def test_inner_products_are_those_of_gradients_on_average(linear_schedule, clean, draws):
    network = networks()["everything"]
    gradients = exact(network, linear_schedule, clean[:4], draws)
    wanted = gradients @ gradients.T
    found = []
    for seed in range(300):
        phi = explicit(network, project_layers(network, 3, seed, "checkpoint 0"), gradients)
        found.append(phi @ phi.T)
    found = torch.stack(found)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - wanted).abs() < 4 * error).all()
    assert (error < 0.1 * wanted.diag().mean()).all(), "or the bound would say nothing"


@pytest.mark.parametrize(("size", "rows"), [(3, 4), (4, 4), (5, 4), (300, 8)])
def test_a_side_is_the_identity_or_orthonormal_but_for_its_scale(size, rows):
    matrices = torch.stack(
        [random_projection(size, rows, torch.Generator().manual_seed(seed)) for seed in range(400)]
    )
    if size <= rows:
        assert torch.equal(matrices[0], torch.eye(size))
        return
    assert matrices.shape[1:] == (rows, size)
    torch.testing.assert_close(matrices[0] @ matrices[0].T, torch.eye(rows) * size / rows)
    of_same = (matrices.mT @ matrices).mean(0)
    error = (matrices.mT @ matrices).std(0) / len(matrices) ** 0.5
    assert ((of_same - torch.eye(size)).abs() < 5.5 * error).all()
    assert matrices.mean(0).abs().max() < 5.5 / (rows * len(matrices)) ** 0.5, (
        "no sign is preferred"
    )


def test_key_seed_and_layer_decide(net):
    def first(*of):
        return projected_layers(project_layers(net, 4, *of))["conv_in"].outer

    assert torch.equal(first(0, "a"), first(0, "a"))
    assert not torch.equal(first(0, "a"), first(0, "b"))
    assert not torch.equal(first(0, "a"), first(1, "a"))


def test_bf16_keeps_the_direction(net, linear_schedule, clean, draws):
    kronecker = project_layers(net, 4, 0, "checkpoint 0")
    objectives = [Objective(kronecker, linear_schedule, precision) for precision in Precision]
    full, half = (
        torch.cat(list(kronecker_features(objective, clean[:4], draws, PLANS[0])))
        for objective in objectives
    )
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert (torch.cosine_similarity(full, half) > 0.99).all()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(1, 1, 3, padding="same"),
        nn.PReLU(),
        nn.Embedding(2, 3),
    ],
    ids=str,
)
def test_a_layer_it_knows_nothing_of_is_refused_by_name(layer):
    with pytest.raises(
        ConfigError,
        match=r"^projection=kronecker: must be another projection with this network: 0 is a \w+",
    ):
        project_layers(nn.Sequential(layer), 4, 0, "checkpoint 0")
