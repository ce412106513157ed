"""Training against plain loops, and resumed trainings against undisturbed ones."""

import dataclasses
import json
import shutil
from dataclasses import replace
from threading import Event

import pytest
import torch
from conftest import composed, naive_loss, small_run
from safetensors.torch import load_file

from journey.diffusion import training
from journey.diffusion.ddpm import DDPM
from journey.diffusion.latent import LatentDiffusion
from journey.diffusion.network import bind
from journey.engine.seeding import generator
from journey.engine.spec import cache_key
from journey.engine.store import Store
from journey.engine.workspace import Precision, get, get_group
from journey.pipeline.interfaces import WithoutRandom
from journey.pipeline.settings import Batching, Training

WEIGHTS = "diffusion_pytorch_model.safetensors"
SETTINGS = Training(num_steps=12, batch_size=16, warmup_steps=4, ema_decay=0.9)


def start(model, settings=SETTINGS):
    training.initialise(0, "test")
    return training.new_state(model.build((1, 8, 8)), settings)


def loop(state, clean, schedule, settings=SETTINGS, rows=None, batching=Batching.independent):
    rows = torch.arange(len(clean)) if rows is None else rows
    batches = training.Batches(batching, rows, len(clean), settings.batch_size, 1000, 0, "test")
    inputs = training.TrainingInputs(clean, batches, settings, Precision.fp32, schedule)
    return training.train(state, inputs, settings.num_steps)


def batches_of(rows, batching=Batching.coupled):
    """Return mini-batches of 4 of 10 examples."""
    return training.Batches(
        batching, torch.tensor(rows), 10, 4, 1000, 0, "test", samples_latents=True
    )


def parameters(state):
    return torch.cat([p.detach().flatten() for p in state.network.parameters()])


def test_the_first_loss_is_that_of_a_plain_loop(model, clean, linear_schedule):
    network = start(model).network
    loss, _ = next(loop(start(model), clean, linear_schedule))
    random = generator(0, "train", "test", 0)
    t = torch.randint(1000, (16,), generator=random)
    eps = torch.randn(16, 1, 8, 8, generator=random)
    total = 0
    for k, i in enumerate(training.batch_index(len(clean), 16, 0, 0, "test")):
        total += naive_loss(network, linear_schedule, clean.x0[i], t[k], eps[k]).detach()
    torch.testing.assert_close(loss, total / 16)


DROPOUT = DDPM(block_out_channels=[8, 16], dropout=0.3)
MIRRORED = dataclasses.replace(SETTINGS, flip=True)


@pytest.mark.parametrize(
    ("network", "settings"),
    [(DDPM(block_out_channels=[8, 16]), SETTINGS), (DROPOUT, MIRRORED)],
    ids=["plain", "dropout and mirroring"],
)
def test_a_training_resumed_from_any_state_is_the_undisturbed_one(
    network, settings, clean, linear_schedule, tmp_path
):
    undisturbed = start(network, settings)
    for _ in loop(undisturbed, clean, linear_schedule, settings):
        torch.rand(3)  # other uses of torch's global generator change nothing
        if undisturbed.step in (1, 7):
            training.save(undisturbed, tmp_path / f"{undisturbed.step}.safetensors")
    for step in (1, 7):
        state = start(network, settings)
        training.restore(state, tmp_path / f"{step}.safetensors")
        list(loop(state, clean, linear_schedule, settings))
        assert torch.equal(parameters(state), parameters(undisturbed))
        assert all(torch.equal(state.ema[name], undisturbed.ema[name]) for name in state.ema)


def test_dropout_and_mirroring_change_the_training(model, clean, linear_schedule):
    results = []
    for network, settings in ((DROPOUT, MIRRORED), (DROPOUT, SETTINGS), (model, MIRRORED)):
        state = start(network, settings)
        list(loop(state, clean, linear_schedule, settings))
        results.append(parameters(state))
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_averaged_weights_are_an_exponential_moving_average(model, clean, linear_schedule):
    state = start(model)
    average = parameters(state)
    for _ in loop(state, clean, linear_schedule):
        average = 0.9 * average + 0.1 * parameters(state)
    training.use_average(state)
    torch.testing.assert_close(parameters(state), average)


def test_every_epoch_has_every_example_once():
    for num, size in ((10, 4), (10, 10), (3, 8)):
        index = torch.cat([training.batch_index(num, size, step, 0, "test") for step in range(num)])
        for epoch in index.split(num):
            assert sorted(epoch.tolist()) == list(range(num))


def test_coupled_batches_are_those_of_all_examples_without_the_removed_ones():
    rows = [0, 2, 3, 7]
    for step in range(7):
        full = batches_of(range(10)).batch(step, (1, 2, 2))
        part = batches_of(rows).batch(step, (1, 2, 2))
        expected = full[torch.isin(full.rows, torch.tensor(rows))]
        assert part.size == len(part.rows)
        for name in ("rows", "t", "eps", "latent_noise"):
            assert torch.equal(getattr(part, name), getattr(expected, name))


def test_independent_batches_are_full_and_of_the_subset_only():
    for step in range(5):
        batch = batches_of([1, 4, 5, 8, 9], Batching.independent).batch(step, (1, 2, 2))
        assert len(batch.rows) == 4
        assert set(batch.rows.tolist()) <= {1, 4, 5, 8, 9}


def test_random_numbers_of_an_image_do_not_depend_on_the_subset():
    full, part = batches_of(range(10)), batches_of([0, 2, 3, 7])
    uniform = torch.stack([full.uniform("mirror", step, torch.arange(10)) for step in range(50)])
    for step in range(50):
        rows = part.batch(step, (1, 2, 2)).rows
        assert torch.equal(part.uniform("mirror", step, rows), uniform[step, rows])
    assert 0.4 < (uniform < 0.5).float().mean() < 0.6


def test_a_coupled_training_differs_from_the_full_one_by_its_examples_only(
    model, clean, linear_schedule
):
    trained = {}
    for name, batching, first in (
        ("full", Batching.independent, 0),
        ("all", Batching.coupled, 0),
        ("without one", Batching.coupled, 1),
    ):
        state, rows = start(model), torch.arange(first, len(clean))
        list(loop(state, clean, linear_schedule, rows=rows, batching=batching))
        trained[name] = parameters(state)
    assert torch.equal(trained["full"], trained["all"])
    assert not torch.equal(trained["full"], trained["without one"])


def test_an_empty_batch_changes_nothing(model, clean, linear_schedule):
    state, rows = start(model), torch.tensor([0])
    before, num_steps = parameters(state), SETTINGS.num_steps
    yields = list(loop(state, clean, linear_schedule, rows=rows, batching=Batching.coupled))
    assert state.step == num_steps
    index = [training.batch_index(len(clean), 16, step, 0, "test") for step in range(num_steps)]
    assert len(yields) == sum(0 in batch for batch in index) < num_steps
    assert not torch.equal(parameters(state), before)


def test_the_learning_rate_rises_then_falls():
    settings = Training(num_steps=100, warmup_steps=10, learning_rate=0.5)
    rates = [training.learning_rate(settings, step) for step in range(100)]
    assert rates[9] == rates[10] == 0.5
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.25)
    assert rates[-1] < 0.001


def test_nan_is_refused_with_its_step_and_the_last_good_state_stays(small, workspace, monkeypatch):
    spec, train = small.checkpoint(0), training.train

    def with_nan(state, *rest):
        for loss, norm in train(state, *rest):
            yield (loss * float("nan") if state.step == 137 else loss), norm

    monkeypatch.setattr(training, "train", with_nan)
    with pytest.raises(FloatingPointError, match="training step 137: loss nan"):
        get(spec, workspace)
    partial = workspace.store.root / (cache_key(spec) + ".partial")
    assert [path.name for path in partial.glob("*.safetensors")] == ["resume.100.safetensors"]
    run = small_run()
    state = training.new_state(run.model.build((1, 8, 8)), run.training)
    training.restore(state, partial / "resume.100.safetensors")
    assert state.step == 100
    monkeypatch.undo()
    lines = (get(spec, workspace).path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [50, 100, 150]


def test_steps_are_taken_while_a_state_is_saved(small, workspace, monkeypatch):
    """The state of step 50 is written once step 90 was taken, and is still that of step 50."""
    spec, train, save, late = small.checkpoint(0), training.train, training.save_tensors, Event()
    written = []

    def steps(state, *rest):
        for numbers in train(state, *rest):
            if state.step == 90:
                late.set()
            if state.step == 120:
                raise KeyboardInterrupt
            yield numbers

    def waiting_save(tensors, step, path):
        assert late.wait(60), "the training waits for its state to be saved"
        written.append(step)
        save(tensors, step, path)

    monkeypatch.setattr(training, "train", steps)
    monkeypatch.setattr(training, "save_tensors", waiting_save)
    with pytest.raises(KeyboardInterrupt):
        get(spec, workspace)
    assert written == [50, 100]
    monkeypatch.undo()
    alone = replace(workspace, store=Store(workspace.store.root.parent / "alone"))
    resumed, undisturbed = get(spec, workspace), get(spec, alone)
    for name in (WEIGHTS, "metrics.jsonl"):
        assert (resumed.path / name).read_bytes() == (undisturbed.path / name).read_bytes()


def test_weights_that_are_not_finite_are_never_saved(model, tmp_path):
    state = start(model)
    with torch.no_grad():
        next(state.network.parameters())[0] = float("inf")
    with pytest.raises(FloatingPointError, match="a weight is not finite"):
        training.save(state, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("experiment", "channels", "expected"),
    [("cifar10", 3, 35_746_307), ("cifar2", 3, 35_746_307), ("fashion_mnist", 1, 35_741_697)],
)
def test_the_unet_of_the_paper_has_its_number_of_parameters(experiment, channels, expected):
    with torch.device("meta"):
        network = composed(f"experiment={experiment}").model.build((channels, 32, 32))
    assert sum(p.numel() for p in network.parameters()) == expected


class Dropping(torch.nn.Module):
    """A network of two layers, called as those of diffusers."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 1, 1)

    def forward(self, x, t, return_dict):
        hidden = torch.nn.functional.dropout(self.inner(x).relu(), 0.3)
        return (self.outer(hidden) * (t / 1000)[:, None, None, None],)


def compiled_parameters(clean, schedule, compile):
    """Return the parameters after a training, with or without compilation."""
    training.initialise(0, "test")
    state, rows = training.new_state(Dropping(), MIRRORED), torch.arange(len(clean))
    batches = training.Batches(Batching.independent, rows, len(clean), 16, 1000, 0, "test")
    inputs = training.TrainingInputs(
        clean, batches, MIRRORED, Precision.fp32, schedule, compile=compile
    )
    list(training.train(state, inputs, 3))
    return parameters(state)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_training_is_the_same_but_for_rounding(clean, linear_schedule, capfd):
    compiled = compiled_parameters(clean, linear_schedule, compile=True)
    assert "without compilation" not in capfd.readouterr().err
    plain = compiled_parameters(clean, linear_schedule, compile=False)
    assert (compiled - plain).abs().max() < 1e-5, "dropout has the same masks, too"


def test_what_torch_cannot_compile_is_trained_without(clean, linear_schedule, monkeypatch, capfd):
    compile_by = torch.compile

    def failing(network, **_):
        return compile_by(network, backend=lambda *_: 1 / 0)

    monkeypatch.setattr(torch, "compile", failing)
    compiled = compiled_parameters(clean, linear_schedule, compile=True)
    assert torch.equal(compiled, compiled_parameters(clean, linear_schedule, compile=False))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("compute.compile=true: training without compilation (")


@pytest.mark.parametrize("latent", [False, True], ids=["pixels", "text"])
def test_unets_are_one_graph_for_torch_compile(latent):
    sizes = {"block_out_channels": [8, 16], "attention_blocks": [1]}
    if latent:
        model, condition = LatentDiffusion(**sizes), torch.randn(2, 12, 384)
    else:
        model, condition = DDPM(**sizes, mid_block_attention=True), None
    network = model.build((4, 4, 4))
    predict = bind(torch.compile(network, backend="eager", fullgraph=True), Precision.fp32)
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([0, 999])
    expected = bind(network, Precision.fp32)(x, t, condition)
    torch.testing.assert_close(predict(x, t, condition), expected)


@pytest.mark.parametrize("begin", [0, 7])
def test_stacked_trainings_are_single_ones_but_for_rounding(
    model, clean, linear_schedule, tmp_path, begin
):
    rows = [torch.arange(len(clean)), torch.arange(0, len(clean), 2), torch.arange(5, 25)]
    single, stacked, inputs = [], [], []
    for index, subset in enumerate(rows):
        batches = training.Batches(
            Batching.independent, subset, len(clean), 16, 1000, index, f"seed {index}"
        )
        inputs.append(
            training.TrainingInputs(clean, batches, MIRRORED, Precision.fp32, linear_schedule)
        )
        states = []
        for _ in range(2):
            training.initialise(index, "test")
            states.append(training.new_state(model.build((1, 8, 8)), MIRRORED))
        list(training.train(states[0], inputs[-1], begin))
        if begin:
            training.save(states[0], tmp_path / "state")
            training.restore(states[1], tmp_path / "state")
        single.append(states[0])
        stacked.append(states[1])
    expected = [
        torch.stack([torch.stack(numbers) for numbers in training.train(state, one, 12)])
        for state, one in zip(single, inputs, strict=True)
    ]
    numbers = [torch.stack(pair) for pair in training.train_stacked(stacked, inputs, 12)]
    torch.testing.assert_close(torch.stack(numbers).permute(2, 0, 1), torch.stack(expected))

    # The states are up to date, moments included: they continue alone.
    for one, other in zip(single, stacked, strict=True):
        assert other.step == 12
        saved = []
        for state in (one, other):
            training.save(state, tmp_path / "saved")
            saved.append(load_file(tmp_path / "saved"))
        assert saved[0].keys() == saved[1].keys()
        for kind in ("network", "optimizer", "ema"):
            names = [name for name in saved[0] if name.startswith(kind)]
            vectors = [torch.cat([file[name].flatten() for name in names]) for file in saved]
            # AdamW amplifies rounding.
            assert (vectors[1] - vectors[0]).norm() < 1e-3 * vectors[0].norm(), kind


def test_models_of_a_group_are_those_trained_alone_and_resume(small, workspace, monkeypatch):
    specs = [small.retrained(small.random_subset(index)) for index in range(3)]
    assert len({spec.group for spec in specs}) == 1
    alone = replace(workspace, store=Store(workspace.store.root.parent / "alone"))
    expected = [get(spec, alone).path / WEIGHTS for spec in specs]

    # An interruption after 100 steps; one model is then continued alone, two as a group.
    stacked = training.train_stacked

    def interrupted(states, *rest):
        for numbers in stacked(states, *rest):
            if states[0].step == 120:
                raise KeyboardInterrupt
            yield numbers

    monkeypatch.setattr(training, "train_stacked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get_group(specs, workspace)
    monkeypatch.undo()
    get(specs[1], workspace)
    get_group(specs, workspace)
    weights = []
    for spec, path in zip(specs, expected, strict=True):
        artifact = workspace.store.find(spec)
        lines = (artifact.path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [50, 100, 150]
        pair = load_file(artifact.path / WEIGHTS), load_file(path)
        weights.append([torch.cat([w.flatten() for w in one.values()]) for one in pair])
    # AdamW amplifies rounding; another subset and its rounding differ by far more.
    between = (weights[0][1] - weights[1][1]).norm()
    assert all((own - other).norm() < 0.02 * between for own, other in weights)


def test_only_trainings_with_batches_of_one_size_and_without_dropout_have_a_group(small):
    coupled = small.retrained(WithoutRandom(0, 5, 0))
    assert coupled.group == ""
    with_dropout = replace(small.model, dropout=0.1)
    assert replace(small, model=with_dropout).checkpoint(0).group == ""
    assert small.checkpoint(1).group == small.checkpoint(0).group != ""
