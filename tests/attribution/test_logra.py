"""Features by Kronecker projections against the exact gradient, projected by explicit matrices."""

import dataclasses

import pytest
import torch
from test_gradients import conditional, labelled, of_classes, text_examples
from torch import nn

from journey.attribution.ekfac import ekfac_batches, estimate_ekfac
from journey.attribution.features import precondition
from journey.attribution.gradients import GradientPlan, Objective
from journey.attribution.kronecker import (
    kronecker_features,
    project_layers_kfac,
    rank_one_factors,
)
from journey.attribution.logra import (
    feature_dimension,
    project_layers,
    projected_layers,
    random_projection,
)
from journey.diffusion.ddpm import DDPM
from journey.diffusion.network import Guidance
from journey.engine.checks import ConfigError
from journey.engine.workspace import Precision
from journey.pipeline.settings import Output

SIZES = [(5, 6), (2, 6), (1, 4), (3, 1)]  # examples, noise samples
PLANS = [GradientPlan("kronecker", *sizes) for sizes in SIZES]


def in_matrix(inner) -> torch.Tensor:
    """Return R_in [rank, in + 1]."""
    filters = inner.filters if inner.mix is None else inner.filters * inner.mix[:, :, None, None]
    shift = [] if inner.shift is None else [inner.shift[:, None]]
    return torch.cat([filters.reshape(len(filters), -1), *shift], 1)


def explicit(network, projected, gradients) -> torch.Tensor:
    """Return φ = R_out G R_inᵀ of every layer, from gradients [B, d] of all parameters."""
    names = [name for name, _ in network.named_parameters()]
    sizes = [p.numel() for p in network.parameters()]
    parts = dict(zip(names, gradients.split(sizes, 1), strict=True))
    blocks = []
    for name, layer in projected_layers(projected).items():
        matrix = []  # weight and bias, [B, out, in + 1]
        for key in (f"{name}.weight", f"{name}.bias"):
            if key in parts:
                matrix.append(parts[key].unflatten(1, (len(layer.layer.weight), -1)))
        product = torch.kron(layer.outer, in_matrix(layer.inner))
        blocks.append(torch.cat(matrix, 2).flatten(1) @ product.T)
    return torch.cat(blocks, 1)


def exact(network, schedule, examples, noise, **changes) -> torch.Tensor:
    """Return gradients of all parameters, by one backward pass for each example. [B, d]"""
    objective = Objective(network, schedule, Precision.fp32, **changes)
    plan = GradientPlan("loop", 1, len(noise))
    return torch.cat(list(objective.gradients(examples, noise, plan)))


def features(network, schedule, examples, noise, plan, **changes) -> torch.Tensor:
    objective = Objective(network, schedule, **{"precision": Precision.fp32, **changes})
    return torch.cat(list(kronecker_features(objective, examples, noise, plan)))


class Everything(nn.Module):
    """Layers of U-Nets, and others: stride, dilation, groups, no bias, wide kernels, tokens."""

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
        x = self.down(nn.functional.silu(self.norm(self.conv_in(x))))
        x = self.dilated(x) + self.time(t[:, None] / 1000)[:, :, None, None]
        x = self.pointwise(nn.functional.silu(self.grouped(x)))
        tokens = self.attention_norm(x.flatten(2).mT)
        queries, keys, values = self.query(tokens), self.key(tokens), self.value(tokens)
        attended = nn.functional.scaled_dot_product_attention(queries, keys, values)
        x = x + self.out(attended).mT.unflatten(2, x.shape[2:])
        return (self.conv_out(nn.functional.interpolate(x, scale_factor=2)),)


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    model = DDPM(block_out_channels=[8, 16], attention_blocks=[1], mid_block_attention=True)
    return {"attention": model.build((1, 8, 8)).eval(), "everything": Everything()}


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("name", ["attention", "everything", "U-Net", "transformer"])
def test_features_are_projected_gradients(linear_schedule, clean, draws, name, plan):
    network, examples = networks().get(name), clean[:5]
    if network is None:
        network, examples = of_classes(name), labelled(clean)
    projected = project_layers(network, 3, 0, "checkpoint 0")
    expected = explicit(network, projected, exact(network, linear_schedule, examples, draws))
    assert expected.shape == (5, feature_dimension(projected))
    ours = features(projected, linear_schedule, examples, draws, plan)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("output", [Output.square, Output.mean, Output.absolute])
@pytest.mark.parametrize("region", [(), (0, 0, 4, 6)])
def test_every_output_and_region_is_supported(net, linear_schedule, clean, draws, output, region):
    projected = project_layers(net, 4, 0, "checkpoint 0")
    inputs, changes = (linear_schedule, clean[:3], draws), {"output": output, "region": region}
    expected = explicit(net, projected, exact(net, *inputs, **changes))
    ours = features(projected, *inputs, PLANS[0], **changes)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_text_to_image_with_and_without_guidance_is_supported(linear_schedule, scale):
    torch.manual_seed(0)
    network = conditional()
    projected = project_layers(network, 4, 0, "checkpoint 0")
    inputs = (linear_schedule, *text_examples())
    guidance = None if scale == 1 else Guidance(scale, torch.randn(5, 6))
    expected = explicit(network, projected, exact(network, *inputs, guidance=guidance))
    for plan in PLANS:
        ours = features(projected, *inputs, plan, guidance=guidance)
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def ekfac_of(network, schedule, examples):
    predict = Objective(network, schedule, Precision.fp32).predict()
    return estimate_ekfac(network, predict, schedule, lambda: ekfac_batches(examples, 1000, 0, 16))


@pytest.fixture(scope="module")
def estimated(linear_schedule, clean):
    """A network with attention, and its EK-FAC factors."""
    network = networks()["attention"]
    return network, ekfac_of(network, linear_schedule, clean[:64])


@pytest.mark.parametrize("name", ["attention", "U-Net", "transformer"])
def test_preconditioned_features_are_projected_gradients(
    estimated, linear_schedule, clean, draws, name
):
    (network, ekfac), examples = estimated, clean[:5]
    if name != "attention":
        network, examples = of_classes(name), labelled(clean)
        labels = torch.arange(64)[:, None] % 4
        train = dataclasses.replace(clean[:64], condition=labels)
        ekfac = ekfac_of(network, linear_schedule, train)
    projected = project_layers_kfac(network, ekfac, 0.1, 3, 0, "checkpoint 0")
    covered = {name for name, _ in projected.named_parameters() if ".layer." in name}
    others = {name for name, _ in projected.named_parameters()} - covered
    assert all("norm" in name for name in others), "they are held fixed"
    assert any("embed" in name for name in covered) or name == "attention"
    inputs = (linear_schedule, examples, draws)
    expected = explicit(network, projected, exact(network, *inputs))
    ours = features(projected, *inputs, PLANS[1])
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_kfac_is_ekfac_at_full_rank_where_eigenvalues_are_a_product(
    estimated, linear_schedule, clean, draws
):
    """With λ = 0 up to rounding, because Λ + λ is not a product."""
    network, ekfac = estimated
    products = ekfac.eigenvalues.clone()
    for layer in ekfac.layers.values():
        a, b = rank_one_factors(layer.matrix(products[None])[0])
        layer.write(products, torch.outer(b + 0.1 * b.mean(), a + 0.1 * a.mean()))
    ekfac = dataclasses.replace(ekfac, eigenvalues=products)
    inputs = (linear_schedule, clean[:5], draws)
    projected = project_layers_kfac(network, ekfac, 1e-9, 10_000, 0, "any")
    phi = features(projected, *inputs, PLANS[0])
    expected = precondition(lambda g: g, ekfac, (1e-9,), 4)(exact(network, *inputs))[:, 0]
    assert phi.shape[1] == ekfac.eigenvalues.isfinite().sum()
    torch.testing.assert_close(phi @ phi.T, expected @ expected.T, rtol=5e-3, atol=1e-4)


def test_rank_one_factors_have_the_sums_of_the_values():
    values = torch.rand(4, 7)
    a, b = rank_one_factors(values)
    torch.testing.assert_close(torch.outer(b, a).sum(0), values.sum(0))
    torch.testing.assert_close(torch.outer(b, a).sum(1), values.sum(1))
    assert not rank_one_factors(torch.zeros(2, 3))[0].any(), "an unused layer has zeros"


def test_the_original_network_does_not_change(net, linear_schedule, clean, draws):
    projected = project_layers(net, 4, 0, "checkpoint 0")
    x, t = clean.x0[:2], torch.tensor([3, 500])
    copies = [p.clone() for p in net.parameters()]
    torch.testing.assert_close(projected(x, t).sample, net(x, t).sample)
    features(projected, linear_schedule, clean[:2], draws, PLANS[0])
    assert not projected_layers(net)
    for p, copy, shared in zip(net.parameters(), copies, projected.parameters(), strict=True):
        assert torch.equal(p, copy)
        assert p.requires_grad
        assert p.data_ptr() == shared.data_ptr(), "there is no second copy"


def test_full_rank_keeps_the_gradient(net, linear_schedule, clean, draws):
    inputs = (linear_schedule, clean[:4], draws)
    gradients = exact(net, *inputs)
    phi = features(project_layers(net, 10_000, 0, "checkpoint 0"), *inputs, PLANS[0])
    torch.testing.assert_close(phi @ phi.T, gradients @ gradients.T, rtol=1e-3, atol=1e-5)


def test_inner_products_are_those_of_gradients_on_average(linear_schedule, clean, draws):
    network = networks()["everything"]
    gradients = exact(network, linear_schedule, clean[:4], draws)
    expected = gradients @ gradients.T
    products = []
    for seed in range(300):
        phi = explicit(network, project_layers(network, 3, seed, "checkpoint 0"), gradients)
        products.append(phi @ phi.T)
    products = torch.stack(products)
    error = products.std(0) / len(products) ** 0.5
    assert ((products.mean(0) - expected).abs() < 4 * error).all()
    assert (error < 0.1 * expected.diag().mean()).all(), "otherwise the bound is empty"


@pytest.mark.parametrize(("size", "rank"), [(3, 4), (4, 4), (5, 4), (300, 8)])
def test_a_random_projection_is_the_identity_or_scaled_orthonormal(size, rank):
    seeds = (torch.Generator().manual_seed(seed) for seed in range(400))
    matrices = torch.stack([random_projection(size, rank, random) for random in seeds])
    if size <= rank:
        assert torch.equal(matrices[0], torch.eye(size))
        return
    assert matrices.shape[1:] == (rank, size)
    torch.testing.assert_close(matrices[0] @ matrices[0].T, torch.eye(rank) * size / rank)
    products = matrices.mT @ matrices
    error = products.std(0) / len(matrices) ** 0.5
    assert ((products.mean(0) - torch.eye(size)).abs() < 5.5 * error).all()
    bound = 5.5 / (rank * len(matrices)) ** 0.5
    assert matrices.mean(0).abs().max() < bound, "no sign is preferred"


def test_key_and_seed_determine_the_projections(net):
    def first(*seed_and_key):
        return projected_layers(project_layers(net, 4, *seed_and_key))["conv_in"].outer

    assert torch.equal(first(0, "a"), first(0, "a"))
    assert not torch.equal(first(0, "a"), first(0, "b"))
    assert not torch.equal(first(0, "a"), first(1, "a"))


def test_bf16_keeps_the_direction(net, linear_schedule, clean, draws):
    inputs = (project_layers(net, 4, 0, "checkpoint 0"), linear_schedule, clean[:4], draws)
    full = features(*inputs, PLANS[0], precision=Precision.fp32)
    half = features(*inputs, PLANS[0], precision=Precision.bf16)
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert (torch.cosine_similarity(full, half) > 0.99).all()


REFLECTED = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")
SAME = nn.Conv2d(1, 1, 3, padding="same")
PADDED = nn.Embedding(2, 3, padding_idx=0)


@pytest.mark.parametrize("layer", [REFLECTED, SAME, nn.PReLU(), PADDED], ids=str)
def test_an_unsupported_layer_is_refused_by_name(layer):
    message = r"^projection=kronecker does not support \w+\(.*\) \(0\); use another projection"
    with pytest.raises(ConfigError, match=message):
        project_layers(nn.Sequential(layer), 4, 0, "checkpoint 0")
