"""EK-FAC against the dense Gauss–Newton matrix."""

import pytest
import torch
from torch import nn

from journey.attribution import ekfac as ekfac_module
from journey.attribution.ekfac import (
    ekfac_batches,
    estimate_ekfac,
    joined_batches,
    load_ekfac,
    save_ekfac,
)
from journey.attribution.features import precondition
from journey.attribution.outputs import NoiseSamples
from journey.pipeline.examples import Examples
from journey.pipeline.schedule import add_noise

NUM_BATCHES, BATCH, SHAPE = 100, 100, (1, 3, 3)


def batches():
    random = torch.Generator().manual_seed(0)
    for _ in range(NUM_BATCHES):
        x0, eps, error = torch.randn(3, BATCH, *SHAPE, generator=random)
        t = torch.randint(1000, (BATCH,), generator=random)
        yield x0, NoiseSamples(t, eps), error, None


def estimated(net, schedule):
    return estimate_ekfac(net, lambda x, t, condition=None: net(x), schedule, batches)


def dense(net, schedule):
    """Return (2 / D) E[JᵀJ] from whole Jacobians. [d, d]"""
    parameters = dict(net.named_parameters())

    def out(parameters, x):
        return torch.func.functional_call(net, parameters, (x[None],)).flatten()

    total = 0
    for x0, noise, _, _ in batches():
        x_t = add_noise(schedule, x0, noise.t, noise.eps)
        by_name = torch.func.vmap(torch.func.jacrev(out), (None, 0))(parameters, x_t)
        jacobian = torch.cat([j.detach().flatten(2) for j in by_name.values()], 2)
        jacobian = jacobian.flatten(0, 1)  # [B D, d]
        total = total + 2 / len(jacobian) * jacobian.T @ jacobian
    return total / NUM_BATCHES


@pytest.fixture(scope="module")
def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.Tanh(), nn.Conv2d(3, 1, 3, padding=1)
    )


@pytest.fixture(scope="module")
def ekfac(convolutions, linear_schedule):
    return estimated(convolutions, linear_schedule)


def matrix(ekfac):
    """Return Q Λ Qᵀ of the parameters that are not held fixed, in the dense order."""
    rotation = ekfac.rotate(torch.eye(len(ekfac.eigenvalues)))  # rows: Qᵀe
    free = ekfac.eigenvalues.isfinite()
    return rotation[:, free] * ekfac.eigenvalues[free] @ rotation[:, free].T


def random_gradients(ekfac, num_rows):
    return torch.randn(num_rows, len(ekfac.eigenvalues)) * ekfac.eigenvalues.isfinite()


class Sign(nn.Module):
    """The index of an example: whether its mean is above 0.2, and 2 if it is above 0.3."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return (mean > 0.2).long() + (mean > 0.3)


@pytest.mark.parametrize(
    "layers", [(nn.Flatten(), nn.Linear(9, 9)), (Sign(), nn.Embedding(3, 9))], ids=str
)
def test_one_layer_is_exact(linear_schedule, layers):
    """There, gradients at the outputs do not depend on the inputs, so A ⊗ B is exact."""
    network = nn.Sequential(*layers, nn.Unflatten(1, SHAPE))
    ours, expected = matrix(estimated(network, linear_schedule)), dense(network, linear_schedule)
    error = (ours - expected).norm() / expected.norm()
    assert error < 0.1, "only the randomness of the pseudo-targets is left"


def test_eigenvalues_are_those_of_the_dense_matrix_and_scores_are_closer_than_without(
    ekfac, convolutions, linear_schedule
):
    free = ekfac.eigenvalues.isfinite()
    sizes = [p.numel() for p in convolutions.parameters()]
    num_free = [int(part.sum()) for part in free.split(sizes)]
    assert num_free == [27, 3, 0, 0, 27, 1], "only the normalization is held fixed"

    expected = dense(convolutions, linear_schedule)
    random = torch.Generator().manual_seed(1)
    gradients = (torch.randn(30, len(free), generator=random) * expected.diagonal().sqrt())[:, free]
    whole = expected[free][:, free]
    basis = ekfac.rotate(torch.eye(len(free)))[:, free][free]  # columns: eigenvectors
    diagonal = (basis * (whole @ basis)).sum(0)
    torch.testing.assert_close(diagonal, ekfac.eigenvalues[free], rtol=0.15, atol=1e-3)

    padded = torch.zeros(30, len(free)).masked_scatter(free, gradients)
    features = ekfac.rotate(padded) * ekfac.damped(0.1).rsqrt()
    damped = whole + 0.1 * whole.trace() / len(whole) * torch.eye(len(whole))
    exact = gradients @ torch.linalg.solve(damped, gradients.T)
    off_diagonal = ~torch.eye(30, dtype=bool)

    def agreement(scores):
        return torch.corrcoef(torch.stack([scores[off_diagonal], exact[off_diagonal]]))[0, 1]

    assert agreement(features @ features.T) > 0.75 > agreement(gradients @ gradients.T) + 0.05


def test_a_layer_that_is_used_twice_has_the_curvature_of_the_sum(linear_schedule):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(9, 9)

        def forward(self, x):
            x = x.flatten(1)
            return (self.layer(x) + self.layer(x.flip(1))).unflatten(1, SHAPE)

    torch.manual_seed(0)
    network = Twice()
    ekfac, expected = estimated(network, linear_schedule), dense(network, linear_schedule)
    basis = ekfac.rotate(torch.eye(len(expected)))
    diagonal = (basis * (expected @ basis)).sum(0)
    torch.testing.assert_close(diagonal, ekfac.eigenvalues, rtol=0.15, atol=1e-3)


@pytest.mark.parametrize("num_rows", [1, 2, 5])
def test_inner_products_of_preconditioned_gradients_are_influences(ekfac, num_rows):
    g, gradients = matrix(ekfac), random_gradients(ekfac, 5)
    features = precondition(lambda g: g, ekfac, (0.01, 1.0), num_rows)(gradients)
    mean = ekfac.eigenvalues[ekfac.eigenvalues.isfinite()].mean()
    for k, relative in enumerate((0.01, 1.0)):
        damped = g + relative * mean * torch.eye(len(g))
        expected = gradients @ torch.linalg.solve(damped, gradients.T)
        ours = features[:, k] @ features[:, k].T
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_factors_do_not_depend_on_the_signs_of_eigenvectors(monkeypatch):
    """Machines differ in them, and features are projected in the eigenbasis."""
    symmetric = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    symmetric = symmetric.T @ symmetric
    vectors, eigh = ekfac_module._eigenvectors(symmetric), torch.linalg.eigh
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: (eigh(x)[0], eigh(x)[1] * signs))
    assert torch.equal(ekfac_module._eigenvectors(symmetric), vectors)
    diagonal = vectors.T @ symmetric @ vectors
    torch.testing.assert_close(diagonal, torch.diag(eigh(symmetric)[0]), rtol=1e-4, atol=1e-4)


def test_rotating_back_gives_the_gradients(ekfac):
    gradients = random_gradients(ekfac, 4)
    ours = ekfac.rotate(ekfac.rotate(gradients), back=True)
    torch.testing.assert_close(ours, gradients, rtol=1e-4, atol=1e-5)


def test_a_file_contains_all_factors(ekfac, convolutions, tmp_path):
    save_ekfac(ekfac, tmp_path / "ekfac.safetensors")
    loaded = load_ekfac(tmp_path / "ekfac.safetensors", convolutions, torch.device("cpu"))
    gradients = torch.randn(4, len(ekfac.eigenvalues))
    rotated = loaded.rotate(gradients)
    torch.testing.assert_close(rotated, ekfac.rotate(gradients), rtol=1e-4, atol=1e-5)
    assert torch.equal(ekfac.eigenvalues, loaded.eigenvalues)


def test_a_pass_has_every_image_once_and_a_batch_has_stratified_timesteps():
    clean = Examples(torch.arange(20.0)[:, None])
    first, last = ekfac_batches(clean, 1000, seed=0, batch_size=16)
    assert torch.equal(torch.cat([first[0], last[0]]), clean.x0)
    for x0, noise, error, _ in (first, last):
        assert (noise.t * len(x0) // 1000).tolist() == list(range(len(x0)))
        assert noise.eps.shape == error.shape == x0.shape
        assert not torch.equal(noise.eps, error)
    again, _ = ekfac_batches(clean, 1000, seed=0, batch_size=16)
    assert torch.equal(first[2], again[2]), "both passes have the same pseudo-targets"


@pytest.mark.parametrize("condition", [None, torch.arange(40)[:, None]])
def test_joined_batches_have_the_same_pairs(condition):
    clean = Examples(torch.arange(40.0)[:, None], condition=condition)
    plain = list(ekfac_batches(clean, 1000, 0, 16))
    joined = list(joined_batches(iter(plain), 2))
    assert [len(batch[0]) for batch in joined] == [32, 8]
    for name in ("t", "eps"):
        ours, theirs = (torch.cat([getattr(b[1], name) for b in all]) for all in (joined, plain))
        assert torch.equal(ours, theirs)
    for part in (0, 2) if condition is None else (0, 2, 3):
        ours, theirs = (torch.cat([b[part] for b in all]) for all in (joined, plain))
        assert torch.equal(ours, theirs)
