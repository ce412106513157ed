import torch
from conftest import naive_loss

from journey.attribution.output import Draws, all_timestep_draws, output, step_draws
from journey.config import Precision
from journey.diffusion.network import bind


def test_output_is_the_mean_over_draws(net, linear_schedule, clean, draws):
    ours = output(bind(net, Precision.fp32), linear_schedule, clean.x0[0], draws)
    one_by_one = [naive_loss(net, linear_schedule, clean.x0[0], t, e) for t, e in zip(draws.t, draws.eps, strict=True)]
    torch.testing.assert_close(ours, torch.stack(one_by_one).mean())


def test_step_draws_share_noise_whatever_their_number():
    few, many = (step_draws(300, k, (1, 8, 8), 0, "test", antithetic=False) for k in (4, 16))
    assert torch.equal(few.eps, many.eps[:4])
    assert (many.t == 300).all()


def test_all_timestep_draws_have_one_t_in_each_stratum():
    for k in (1, 3, 7, 1000):
        t = all_timestep_draws(1000, k, (1,), 0, "test", antithetic=False).t
        edges = torch.arange(k + 1) * 1000 // k
        assert ((edges[:-1] <= t) & (t < edges[1:])).all()


def test_antithetic_draws_are_pairs_and_their_halves_whole_pairs():
    draws = step_draws(300, 8, (1, 8, 8), 0, "test", antithetic=True)
    for part in (draws, *draws.halves(antithetic=True)):
        assert torch.equal(part.eps[0::2], -part.eps[1::2])
        assert torch.equal(part.t[0::2], part.t[1::2])


def test_halves_and_chunks_hold_every_draw_once(draws):
    first, second = draws.halves(antithetic=False)
    assert sorted([*first.t.tolist(), *second.t.tolist()]) == sorted(draws.t.tolist())
    chunks = draws.split(4)
    assert [len(c) for c in chunks] == [4, 2]
    assert torch.equal(torch.cat([c.eps for c in chunks]), draws.eps)
    assert isinstance(chunks[0], Draws)
