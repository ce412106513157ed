import pytest
import torch
from conftest import naive_loss

from journey.attribution.outputs import (
    NoiseSamples,
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


def test_output_is_the_mean_over_draws(net, linear_schedule, clean, draws):
    ours = output(bind(net, Precision.fp32), linear_schedule, clean[0], draws)
    one_by_one = [
        naive_loss(net, linear_schedule, clean.x0[0], t, e)
        for t, e in zip(draws.t, draws.eps, strict=True)
    ]
    torch.testing.assert_close(ours, torch.stack(one_by_one).mean())


def test_step_draws_share_noise_whatever_their_number():
    few, many = (sample_noise_at(300, k, (1, 8, 8), 0, "test", antithetic=False) for k in (4, 16))
    assert torch.equal(few.eps, many.eps[:4])
    assert (many.t == 300).all()


def test_all_timestep_draws_have_one_t_in_each_stratum():
    for k in (1, 3, 7, 1000):
        t = sample_noise((0, 1000), k, (1,), 0, "test").t
        edges = torch.arange(k + 1) * 1000 // k
        assert ((edges[:-1] <= t) & (t < edges[1:])).all()


def test_antithetic_draws_are_pairs():
    draws = sample_noise_at(300, 8, (1, 8, 8), 0, "test", antithetic=True)
    assert torch.equal(draws.eps[0::2], -draws.eps[1::2])
    assert torch.equal(draws.t[0::2], draws.t[1::2])


def test_halves_hold_every_draw_once_and_whole_pairs():
    of_draws = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    assert half_means(of_draws, antithetic=False).tolist() == [[2.5], [5.0]]
    assert half_means(of_draws, antithetic=True).tolist() == [[1.5], [6.0]]


@pytest.mark.parametrize("region", [(), (0, 2, 4, 8)])
def test_losses_of_a_batch_are_outputs_of_one_draw_at_a_time(net, linear_schedule, region):
    queries = Examples(torch.randn(3, 1, 8, 8))
    draws = [sample_noise_at(300, 4, (1, 8, 8), 0, f"test {q}", antithetic=False) for q in range(3)]
    predict = bind(net, Precision.fp32)
    found = sample_losses(predict, linear_schedule, queries, draws, region)
    with torch.no_grad():
        one_by_one = [
            [
                output(predict, linear_schedule, queries[q], draws[q][k : k + 1], region=region)
                for k in range(4)
            ]
            for q in range(3)
        ]
    torch.testing.assert_close(found, torch.tensor(one_by_one))


def test_chunks_hold_every_draw_once(draws):
    chunks = draws.split(4)
    assert [len(c) for c in chunks] == [4, 2]
    assert torch.equal(torch.cat([c.eps for c in chunks]), draws.eps)
    assert isinstance(chunks[0], NoiseSamples)


def test_windows_and_independent_draws_keep_to_their_timesteps_and_share_noise():
    whole = sample_noise((0, 1000), 1000, (2,), 0, "test")
    for draws in (
        sample_noise((200, 260), 60, (2,), 0, "test"),
        sample_noise((200, 230), 30, (2,), 0, "test"),
    ):
        assert torch.equal(draws.eps, whole.eps[draws.t])
    independent = sample_noise((200, 260), 60, (2,), 0, "test", stratified=False)
    assert ((independent.t >= 200) & (independent.t < 260)).all()
    assert len(independent.t.unique()) < 60
    assert len(independent.eps.unique(dim=0)) == 60, (
        "a timestep that comes up twice has noise of its own"
    )


@pytest.mark.parametrize("kind", Output)
def test_outputs_are_their_formulas(kind, net, linear_schedule, clean, draws):
    x0, total = clean.x0[0], 0
    for t, eps in zip(draws.t, draws.eps, strict=True):
        alpha_bar = linear_schedule.alpha_bar[t].float()
        predicted = net(
            (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps)[None], t[None]
        ).sample[0]
        formulas = {
            "loss": (eps - predicted) ** 2,
            "square": predicted**2,
            "mean": predicted,
            "absolute": (eps - predicted).abs(),
        }
        total = total + formulas[kind.value].mean() / len(draws)
    ours = output(bind(net, Precision.fp32), linear_schedule, clean[0], draws, kind)
    torch.testing.assert_close(ours, total, rtol=1e-4, atol=1e-6)
