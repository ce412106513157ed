"""EK-FAC against the dense Gauss–Newton matrix."""

import pytest
import torch
from torch import nn

from journey.attribution.ekfac import _places, estimate_ekfac, load_ekfac, save_ekfac
from journey.attribution.ekfac import ekfac_batches as one_draw_each
from journey.attribution.features import whitened
from journey.attribution.outputs import NoiseSamples
from journey.pipeline.examples import Examples
from journey.pipeline.schedule import add_noise

NUM_BATCHES, BATCH, SHAPE = 100, 100, (1, 3, 3)


def batches():
    random = torch.Generator().manual_seed(0)
    for _ in range(NUM_BATCHES):
        x0, eps, off = torch.randn(3, BATCH, *SHAPE, generator=random)
        t = torch.randint(1000, (BATCH,), generator=random)
        yield x0, NoiseSamples(t, eps), off, None


def estimated(net, schedule):
    return estimate_ekfac(net, lambda x, t, context=None: net(x), schedule, batches)


def dense(net, schedule):
    """(2 / D) E[JᵀJ], from whole Jacobians. [d, d]"""
    parameters = dict(net.named_parameters())

    def out(parameters, x):
        return torch.func.functional_call(net, parameters, (x[None],)).flatten()

    total = 0
    for x0, draws, _, _ in batches():
        x_t = add_noise(schedule, x0, draws.t, draws.eps)
        by_name = torch.func.vmap(torch.func.jacrev(out), (None, 0))(parameters, x_t)
        jacobian = torch.cat([j.detach().flatten(2) for j in by_name.values()], 2).flatten(
            0, 1
        )  # [B D, d]
        total = total + 2 / len(jacobian) * jacobian.T @ jacobian
    return total / NUM_BATCHES


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 9), nn.Unflatten(1, SHAPE))


@pytest.fixture
def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.Tanh(), nn.Conv2d(3, 1, 3, padding=1)
    )


def matrix(of):
    """Q Λ Qᵀ of the parameters that are not held fixed, in the dense order."""
    d = len(of.eigenvalues)
    rotation = of.rotate(torch.eye(d))  # rows: Qᵀe
    free = of.eigenvalues.isfinite()
    return rotation[:, free] * of.eigenvalues[free] @ rotation[:, free].T, free


def test_is_exact_for_one_linear_layer(linear, linear_schedule):
    """There, gradients at the outputs do not depend on the inputs, so the Kronecker factorisation is no approximation."""
    ours, _ = matrix(estimated(linear, linear_schedule))
    expected = dense(linear, linear_schedule)
    assert (
        ours - expected
    ).norm() / expected.norm() < 0.1  # what is left is the randomness of the pseudo-targets


def test_eigenvalues_are_the_dense_curvature_and_influence_is_closer_than_without_it(
    convolutions, linear_schedule
):
    ours = estimated(convolutions, linear_schedule)
    expected = dense(convolutions, linear_schedule)
    _, free = matrix(ours)
    held = {name for name, place in _places(convolutions).items() if not free[place].any()}
    assert held == {"1.weight", "1.bias"}, "normalisations are held fixed, and nothing else"

    random = torch.Generator().manual_seed(1)
    gradients = (torch.randn(30, len(free), generator=random) * expected.diagonal().sqrt())[:, free]
    whole = expected[free][:, free]
    basis = ours.rotate(torch.eye(len(free)))[:, free][free]  # columns: eigenvectors
    torch.testing.assert_close(
        (basis * (whole @ basis)).sum(0), ours.eigenvalues[free], rtol=0.15, atol=1e-3
    )

    padded = torch.zeros(30, len(free)).masked_scatter(free, gradients)
    whitened = ours.rotate(padded) * ours.damped(0.1).rsqrt()
    wanted = gradients @ torch.linalg.solve(
        whole + 0.1 * whole.trace() / len(whole) * torch.eye(len(whole)), gradients.T
    )
    off_diagonal = ~torch.eye(30, dtype=bool)

    def agreement(scores):
        return torch.corrcoef(torch.stack([scores[off_diagonal], wanted[off_diagonal]]))[0, 1]

    assert agreement(whitened @ whitened.T) > 0.75 > agreement(gradients @ gradients.T) + 0.05


@pytest.mark.parametrize("num_rows", [1, 2, 5])
def test_whitened_gradients_have_the_inner_products_of_influence(
    convolutions, linear_schedule, num_rows
):
    ours = estimated(convolutions, linear_schedule)
    g = matrix(ours)[0]
    gradients = torch.randn(5, len(ours.eigenvalues)) * ours.eigenvalues.isfinite()
    features = whitened(lambda g: g, ours, (0.01, 1.0), num_rows)(gradients)
    for k, relative in enumerate((0.01, 1.0)):
        damped = g + relative * ours.eigenvalues[ours.eigenvalues.isfinite()].mean() * torch.eye(
            len(g)
        )
        expected = gradients @ torch.linalg.solve(damped, gradients.T)
        torch.testing.assert_close(
            features[:, k] @ features[:, k].T, expected, rtol=1e-3, atol=1e-3
        )


def test_rotating_there_and_back_is_nothing(convolutions, linear_schedule):
    ours = estimated(convolutions, linear_schedule)
    gradients = torch.randn(4, len(ours.eigenvalues)) * ours.eigenvalues.isfinite()
    torch.testing.assert_close(
        ours.rotate(ours.rotate(gradients), back=True), gradients, rtol=1e-4, atol=1e-5
    )


def test_a_file_holds_it_all(convolutions, linear_schedule, tmp_path):
    ours = estimated(convolutions, linear_schedule)
    save_ekfac(ours, tmp_path / "c.safetensors")
    again = load_ekfac(tmp_path / "c.safetensors", convolutions, torch.device("cpu"))
    gradients = torch.randn(4, len(ours.eigenvalues))
    torch.testing.assert_close(
        ours.rotate(gradients), again.rotate(gradients), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(ours.eigenvalues, again.eigenvalues)


def test_every_image_is_drawn_once_and_a_batch_sees_every_timestep():
    clean = Examples(torch.arange(20.0)[:, None])
    first, last = one_draw_each(clean, 1000, seed=0, batch_size=16)
    assert torch.equal(torch.cat([first[0], last[0]]), clean.x0)
    for x0, draws, off, _ in (first, last):
        assert (draws.t * len(x0) // 1000).tolist() == list(range(len(x0)))
        assert draws.eps.shape == off.shape == x0.shape
        assert not torch.equal(draws.eps, off)
    again, _ = one_draw_each(clean, 1000, seed=0, batch_size=16)
    assert torch.equal(first[2], again[2]), "two passes see the same"
