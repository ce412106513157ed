import json

import pytest
import torch
from conftest import naive_loss, small_run
from hydra import compose, initialize_config_dir

from journey.components import COMPONENTS
from journey.config.compose import CONF, parse, register_schemas
from journey.diffusion import training
from journey.diffusion.ddpm import DDPM
from journey.engine.seeding import generator
from journey.engine.spec import cache_key
from journey.engine.workspace import Precision, get
from journey.pipeline.settings import Batching, Training

SETTINGS = Training(num_steps=12, batch_size=16, warmup_steps=4, ema_decay=0.9)


def start(model, settings=SETTINGS):
    training.initialise(0, "test")
    return training.new_state(model.build((1, 8, 8)), settings)


def loop(state, clean, schedule, settings=SETTINGS, rows=None, kind=Batching.independent):
    rows = torch.arange(len(clean)) if rows is None else rows
    drawn = training.Batches(
        kind, rows, len(clean), settings.batch_size, schedule.num_timesteps, 0, "test"
    )
    return training.train(
        state,
        training.TrainingInputs(clean, drawn, settings, Precision.fp32, schedule),
        settings.num_steps,
    )


def batches(rows, kind=Batching.coupled, num=10, size=4):
    return training.Batches(
        kind,
        torch.tensor(rows, dtype=torch.int64),
        num,
        size,
        1000,
        0,
        "test",
        samples_latents=True,
    )


def parameters(state):
    return torch.cat([p.detach().flatten() for p in state.network.parameters()])


def test_first_loss_is_the_naive_one(model, clean, linear_schedule):
    state = start(model)
    before = start(model).network
    loss, _ = next(loop(state, clean, linear_schedule))
    index = training.batch_index(len(clean), 16, 0, 0, "test")
    random = generator(0, "train", "test", 0)
    t, eps = (
        torch.randint(1000, (16,), generator=random),
        torch.randn(16, 1, 8, 8, generator=random),
    )
    naive = torch.stack(
        [
            naive_loss(before, linear_schedule, clean.x0[i], t[k], eps[k])
            for k, i in enumerate(index)
        ]
    )
    torch.testing.assert_close(loss, naive.mean().detach())


def test_continued_from_any_checkpoint_bit_for_bit(model, clean, linear_schedule, tmp_path):
    undisturbed = start(model)
    for _ in loop(undisturbed, clean, linear_schedule):
        if undisturbed.step in (1, 7):
            training.save(undisturbed, tmp_path / f"{undisturbed.step}.safetensors")
    for step in (1, 7):
        state = start(model)
        training.restore(state, tmp_path / f"{step}.safetensors")
        list(loop(state, clean, linear_schedule))
        assert torch.equal(parameters(state), parameters(undisturbed))
        assert all(torch.equal(state.ema[name], undisturbed.ema[name]) for name in state.ema)


def test_average_is_the_exponential_one(model, clean, linear_schedule):
    state = start(model)
    average = parameters(state)
    for _ in loop(state, clean, linear_schedule):
        average = 0.9 * average + 0.1 * parameters(state)
    training.use_average(state)
    torch.testing.assert_close(parameters(state), average)


def test_every_epoch_holds_every_example_once():
    for num, size in ((10, 4), (10, 10), (3, 8)):
        index = torch.cat([training.batch_index(num, size, step, 0, "test") for step in range(num)])
        for epoch in index.split(num):
            assert sorted(epoch.tolist()) == list(range(num))


def test_shared_batches_are_the_full_ones_without_what_is_left_out():
    everything, kept = batches(range(10)), [0, 2, 3, 7]
    for step in range(7):
        rows, *draws = everything.at(step, (1, 2, 2))
        among = torch.isin(rows, torch.tensor(kept))
        found = batches(kept).at(step, (1, 2, 2))
        assert all(torch.equal(a, b[among]) for a, b in zip(found, (rows, *draws), strict=True))


def test_own_batches_hold_only_what_is_kept_and_are_full():
    for step in range(5):
        rows, *_ = batches([1, 4, 5, 8, 9], Batching.independent).at(step, (1, 2, 2))
        assert len(rows) == 4
        assert set(rows.tolist()) <= {1, 4, 5, 8, 9}


def test_a_training_on_a_subset_of_everything_is_the_full_one_bit_for_bit(
    model, clean, linear_schedule
):
    full, same = start(model), start(model)
    list(loop(full, clean, linear_schedule))
    list(loop(same, clean, linear_schedule, kind=Batching.coupled))
    assert torch.equal(parameters(full), parameters(same))
    without = start(model)
    list(
        loop(
            without, clean, linear_schedule, rows=torch.arange(1, len(clean)), kind=Batching.coupled
        )
    )
    assert not torch.equal(parameters(full), parameters(without))


def test_a_batch_of_which_nothing_is_kept_changes_nothing(model, clean, linear_schedule):
    state, kept = start(model), torch.tensor([0])
    before = parameters(state)
    yielded = list(loop(state, clean, linear_schedule, rows=kept, kind=Batching.coupled))
    assert state.step == SETTINGS.num_steps
    held = [
        0 in training.batch_index(len(clean), 16, step, 0, "test")
        for step in range(SETTINGS.num_steps)
    ]
    assert len(yielded) == sum(held) < SETTINGS.num_steps
    assert not torch.equal(parameters(state), before)


def test_learning_rate_rises_then_falls():
    settings = Training(num_steps=100, warmup_steps=10, learning_rate=0.5)
    rates = [training.learning_rate(settings, step) for step in range(100)]
    assert rates[9] == rates[10] == 0.5
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.25)
    assert rates[-1] < 0.001


def test_nan_stops_names_the_step_and_keeps_the_last_good_checkpoint(small, workspace, monkeypatch):
    spec = small.checkpoint(0)

    def poisoned(state, *rest):
        for loss, norm in training_loop(state, *rest):
            yield (loss * float("nan") if state.step == 137 else loss), norm

    training_loop = training.train
    monkeypatch.setattr(training, "train", poisoned)
    with pytest.raises(FloatingPointError, match="training step 137: loss nan"):
        get(spec, workspace)
    partial = workspace.store.root / (cache_key(spec) + ".partial")
    run = small_run()
    state = training.new_state(run.model.build((1, 8, 8)), run.training)
    training.restore(state, partial / "resume.100.safetensors")
    assert not list(partial.glob("resume.*50.safetensors")), "the state before has given way"
    assert state.step == 100
    monkeypatch.undo()
    steps = [
        json.loads(line)["step"]
        for line in (get(spec, workspace).path / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [50, 100, 150]


def test_weights_that_are_not_finite_are_never_saved(model, tmp_path):
    state = start(model)
    with torch.no_grad():
        next(state.network.parameters())[0] = float("inf")
    with pytest.raises(FloatingPointError, match="a weight is not finite"):
        training.save(state, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_dropout_and_mirroring_are_continued_bit_for_bit(clean, linear_schedule, tmp_path):
    model = DDPM(block_out_channels=[8, 16], dropout=0.3)
    settings = Training(num_steps=6, batch_size=16, warmup_steps=2, flip=True)
    undisturbed = start(model, settings)
    for _ in loop(undisturbed, clean, linear_schedule, settings):
        torch.rand(3)  # somebody else draws
        if undisturbed.step == 2:
            training.save(undisturbed, tmp_path / "2.safetensors")
    state = start(model, settings)
    training.restore(state, tmp_path / "2.safetensors")
    list(loop(state, clean, linear_schedule, settings))
    assert torch.equal(parameters(state), parameters(undisturbed))
    for other in (Training(num_steps=6, batch_size=16, warmup_steps=2), settings):
        changed = start(
            DDPM(block_out_channels=[8, 16], dropout=0.0 if other is settings else 0.3), other
        )
        list(loop(changed, clean, linear_schedule, other))
        assert not torch.equal(parameters(changed), parameters(undisturbed))


def test_what_is_drawn_for_an_image_is_the_same_whatever_else_is_kept():
    everything, some = batches(range(10)), batches([0, 2, 3, 7])
    for step in range(5):
        rows, *_ = everything.at(step, (1, 2, 2))
        kept, *_ = some.at(step, (1, 2, 2))
        of_row = dict(
            zip(rows.tolist(), everything.uniform("mirror", step, rows).tolist(), strict=True)
        )
        assert some.uniform("mirror", step, kept).tolist() == [of_row[row] for row in kept.tolist()]
    drawn = torch.cat(
        [everything.uniform("mirror", step, torch.arange(10)) < 0.5 for step in range(50)]
    )
    assert 0.4 < drawn.float().mean() < 0.6


def test_the_unet_of_the_paper_has_its_parameters():
    register_schemas(COMPONENTS)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = parse(compose("config", ["experiment=cifar10"]))
    with torch.device("meta"):
        network = run.model.build((3, 32, 32))
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
