"""EK-FAC against the dense Gauss–Newton matrix."""

import pytest
import torch
from torch import nn

from journey.attribution import curvature
from journey.attribution.output import Draws
from journey.diffusion.schedule import add_noise

NUM_BATCHES, BATCH, SHAPE = 40, 64, (1, 3, 3)


def batches():
    random = torch.Generator().manual_seed(0)
    for _ in range(NUM_BATCHES):
        x0, eps, off = torch.randn(3, BATCH, *SHAPE, generator=random)
        t = torch.randint(1000, (BATCH,), generator=random)
        yield x0, Draws(t, eps), off, None


def estimated(net, schedule):
    return curvature.estimate(net, lambda x, t, context=None: net(x), schedule, batches)


def dense(net, schedule):
    """(2 / D) E[JᵀJ], one output at a time. [d, d]"""
    parameters, total, count = list(net.parameters()), 0, 0
    for x0, draws, _, _ in list(batches())[:4]:
        for example in add_noise(schedule, x0, draws.t, draws.eps):
            out = net(example[None]).flatten()
            rows = [torch.autograd.grad(o, parameters, retain_graph=True) for o in out]
            jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
            total, count = total + 2 / len(out) * jacobian.T @ jacobian, count + 1
    return total / count


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 9), nn.Unflatten(1, SHAPE))


@pytest.fixture
def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.Tanh(), nn.Conv2d(3, 1, 3, padding=1))


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
    assert (ours - expected).norm() / expected.norm() < 0.2  # pseudo-targets are random, and so is the sample of images


def test_influence_is_close_to_the_dense_one(convolutions, linear_schedule):
    ours = estimated(convolutions, linear_schedule)
    expected = dense(convolutions, linear_schedule)
    _, free = matrix(ours)
    held = {name for name, place in curvature._places(convolutions).items() if not free[place].any()}
    assert held == {"1.weight", "1.bias"}, "normalisations are held fixed, and nothing else"

    random = torch.Generator().manual_seed(1)
    gradients = torch.randn(30, len(free), generator=random) * expected.diagonal().sqrt()
    damping = 0.1
    kept = torch.where(free)[0]
    small = expected[kept][:, kept]
    inverse = torch.linalg.inv(small + damping * small.trace() / len(kept) * torch.eye(len(kept)))
    wanted = gradients[:, kept] @ inverse @ gradients[:, kept].T
    whitened = ours.rotate(gradients) * ours.damped(damping).rsqrt()
    off_diagonal = ~torch.eye(30, dtype=bool)
    by_ekfac, by_identity = whitened @ whitened.T, gradients[:, kept] @ gradients[:, kept].T

    def agreement(scores):
        return torch.corrcoef(torch.stack([scores[off_diagonal], wanted[off_diagonal]]))[0, 1]

    assert agreement(by_ekfac) > 0.9
    assert agreement(by_ekfac) > agreement(by_identity) + 0.05


def test_rotating_there_and_back_is_nothing(convolutions, linear_schedule):
    ours = estimated(convolutions, linear_schedule)
    gradients = torch.randn(4, len(ours.eigenvalues)) * ours.eigenvalues.isfinite()
    torch.testing.assert_close(ours.rotate(ours.rotate(gradients), back=True), gradients, rtol=1e-4, atol=1e-5)


def test_a_file_holds_it_all(convolutions, linear_schedule, tmp_path):
    ours = estimated(convolutions, linear_schedule)
    curvature.save(ours, tmp_path / "c.safetensors")
    again = curvature.load(tmp_path / "c.safetensors", convolutions, torch.device("cpu"))
    gradients = torch.randn(4, len(ours.eigenvalues))
    assert torch.equal(ours.rotate(gradients), again.rotate(gradients))
    assert torch.equal(ours.eigenvalues, again.eigenvalues)
