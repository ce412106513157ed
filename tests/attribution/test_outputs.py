import pytest
import torch
from conftest import naive_loss

from journey.attribution.outputs import (
    half_means,
    output,
    sample_losses,
    sample_noise,
    sample_noise_at,
)
from journey.diffusion.network import bind
from journey.engine.workspace import Precision
from journey.pipeline.examples import Examples
from journey.pipeline.settings import Output


def test_output_is_the_mean_over_noise_samples(net, linear_schedule, clean, draws):
    ours = output(bind(net, Precision.fp32), linear_schedule, clean[0], draws)
    pairs = zip(draws.t, draws.eps, strict=True)
    losses = [naive_loss(net, linear_schedule, clean.x0[0], t, eps) for t, eps in pairs]
    torch.testing.assert_close(ours, torch.stack(losses).mean())


def test_samples_at_a_timestep_are_the_same_whatever_their_number():
    few, many = (sample_noise_at(300, k, (1, 8, 8), 0, "test", antithetic=False) for k in (4, 16))
    assert torch.equal(few.eps, many.eps[:4])
    assert (many.t == 300).all()


def test_stratified_samples_have_one_t_in_each_stratum():
    for k in (1, 3, 7, 1000):
        t = sample_noise((0, 1000), k, (1,), 0, "test").t
        edges = torch.arange(k + 1) * 1000 // k
        assert ((edges[:-1] <= t) & (t < edges[1:])).all()


def test_antithetic_samples_are_pairs():
    noise = sample_noise_at(300, 8, (1, 8, 8), 0, "test", antithetic=True)
    assert torch.equal(noise.eps[0::2], -noise.eps[1::2])
    assert torch.equal(noise.t[0::2], noise.t[1::2])


def test_halves_contain_every_sample_once_and_whole_pairs():
    losses = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    assert half_means(losses, antithetic=False).tolist() == [[2.5], [5.0]]
    assert half_means(losses, antithetic=True).tolist() == [[1.5], [6.0]]


@pytest.mark.parametrize("region", [(), (0, 2, 4, 8)])
def test_losses_of_a_batch_are_outputs_at_single_samples(net, linear_schedule, region):
    queries, predict = Examples(torch.randn(3, 1, 8, 8)), bind(net, Precision.fp32)
    noise = [sample_noise_at(300, 4, (1, 8, 8), 0, f"test {q}", antithetic=False) for q in range(3)]
    losses = sample_losses(predict, linear_schedule, queries, noise, region)
    for q in range(3):
        for k in range(4):
            single = (queries[q], noise[q][k : k + 1])
            expected = output(predict, linear_schedule, *single, region=region)
            torch.testing.assert_close(losses[q, k], expected.detach())


def test_all_ranges_of_timesteps_share_the_noise_of_a_timestep():
    whole = sample_noise((0, 1000), 1000, (2,), 0, "test")
    for end, count in ((260, 60), (230, 30)):
        noise = sample_noise((200, end), count, (2,), 0, "test")
        assert torch.equal(noise.eps, whole.eps[noise.t])
    independent = sample_noise((200, 260), 60, (2,), 0, "test", stratified=False)
    assert ((independent.t >= 200) & (independent.t < 260)).all()
    assert len(independent.t.unique()) < 60
    assert len(independent.eps.unique(dim=0)) == 60, "a repeated timestep has different noise"


@pytest.mark.parametrize("function", Output)
def test_outputs_are_their_formulas(function, net, linear_schedule, clean, draws):
    x0, total = clean.x0[0], 0
    for t, eps in zip(draws.t, draws.eps, strict=True):
        alpha_bar = linear_schedule.signal_squared[t].float()
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
        predicted = net(x_t[None], t[None]).sample[0]
        formulas = {
            "loss": (eps - predicted) ** 2,
            "square": predicted**2,
            "mean": predicted,
            "absolute": (eps - predicted).abs(),
        }
        total = total + formulas[function.value].mean() / len(draws)
    ours = output(bind(net, Precision.fp32), linear_schedule, clean[0], draws, function)
    torch.testing.assert_close(ours, total, rtol=1e-4, atol=1e-6)
