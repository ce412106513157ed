"""Plans: numbers of artifacts, their sizes, and their costs."""

import dataclasses
import re

import numpy as np
import pytest
from conftest import journey_trak, small_run

from journey.attribution.baselines import Pixel
from journey.attribution.gradient import Featurize
from journey.engine.costs import RATES, Cost, Rate, Rates, StageCost, estimate_cost, write_rates
from journey.engine.graph import ancestors
from journey.engine.store import StoreError
from journey.engine.workspace import get
from journey.experiment import load_experiment
from journey.launch.local import Local
from journey.pipeline.settings import Kernel, Training
from journey.report import plan


@pytest.fixture
def run():
    return small_run(
        training=Training(num_steps=5, batch_size=16, warmup_steps=1),
        method={"a": journey_trak(), "b": Pixel()},
    )


@pytest.fixture
def target(run, workspace):
    return load_experiment(run, workspace.store).evaluation(run.evaluation, run.all_methods)


def lines(capsys) -> dict[str, list[str]]:
    """Return the cells by stage, and the caption."""
    *table, below = capsys.readouterr().out.partition("└")
    rows = [re.split("[│┃]", line)[1:-1] for line in table[0].splitlines() if line[0] in "│┃"]
    text = " ".join(line.strip() for line in below.splitlines()[1:])
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows} | {"below": [text]}


def test_sizes_are_those_of_the_arrays(run, workspace):
    experiment = load_experiment(run, workspace.store)
    ekfac = experiment.scores(journey_trak(kernel=Kernel.ekfac, damping=[0.1, 1.0]))
    scores = [experiment.scores(method) for method in run.method.values()]
    every = [
        *scores,
        ekfac,
        *ancestors(ekfac),
        *ancestors(scores[0]),
        experiment.outputs(experiment.checkpoint(0)),
    ]
    sized = [spec for spec in every if spec.size is not None]
    assert {spec.folder for spec in sized} == {"scores", "features", "trajectories", "outputs"}
    for spec in sized:
        arrays = get(spec, workspace).path.glob("*.npy")
        assert spec.size == sum(np.load(path).nbytes for path in arrays), spec.label


def test_similar_artifacts_come_before_measured_rates(target):
    spec = target.trajectories.checkpoint
    similar, other = StageCost(spec.work / 2, 10.0, 100.0), StageCost(spec.work / 100, 1.0, 7.0)
    rate = Rate(spec.work / 4, 1.0, size=80)
    assert estimate_cost(spec, [], None) == Cost(None, None)
    assert estimate_cost(spec, [other], None) == Cost(pytest.approx(100), None, rough=True)
    assert estimate_cost(spec, [other], rate) == Cost(4.0, 80, measured=True)
    assert estimate_cost(spec, [other, similar], rate) == Cost(20.0, 80)
    assert estimate_cost(spec, [other, similar], None) == Cost(20.0, 200.0)


def test_preconditioned_and_normalised_gradients_have_rates_of_their_own(run, workspace):
    experiment, names = load_experiment(run, workspace.store), set()
    for changes in ({}, {"normalize": True}, {"kernel": Kernel.ekfac}):
        score = experiment.scores(journey_trak(**changes))
        names |= {spec.rate_name for spec in ancestors(score) if isinstance(spec, Featurize)}
    assert names == {"featurize", "featurize normalized", "featurize preconditioned"}


def test_a_plan_has_numbers_sizes_and_unknown_costs(target, workspace, capsys):
    plan.show_plan(target, workspace.store, workspace.compute)
    cells = lines(capsys)
    assert cells["stage"] == ["artifacts", "cached", "to compute", "worker-hours", "MiB"]
    assert cells["train"] == ["9", "0", "9", "unknown", "unknown"]
    assert cells["featurize"] == ["2", "0", "2", "unknown", "0.066"], "68 × 256 numbers"
    assert cells["total"][3:] == ["unknown", "> 0.078"], (
        "and 1,440 scores, 216 outputs, 1,280 numbers of trajectories"
    )
    assert (
        "models: 1 on all images, 8 retrained; gradients: 544 images × noise samples"
        in cells["below"][0]
    )
    assert "measured" not in cells["below"][0]


def test_a_plan_uses_rates_measured_on_this_kind_of_device(target, workspace, capsys):
    train = target.trajectories.checkpoint
    cuda, store = Local(device="cuda:0"), workspace.store
    rates = {"train": Rate(train.work / 10, 360.0, size=2**20), "measure": Rate(1e-6, 1e9)}
    write_rates(store.root, train.model.label, cuda, Rates("as measured on a card", rates))
    write_rates(
        store.root,
        train.model.label,
        Local(device="cuda"),
        Rates("as measured on a card", {"train": rates["train"]}),
    )
    write_rates(
        store.root,
        dataclasses.replace(train.model, block_out_channels=[8]).label,
        cuda,
        Rates("as another", rates),
    )
    plan.show_plan(target, store, cuda)
    cells = lines(capsys)
    assert cells["stage"][3] == "GPU-hours"
    assert cells["train"] == ["9", "0", "9", "9.0", "9.0"]
    assert (cells["measure"][3], cells["total"][3]) == ("unknown", "> 9.0")
    assert "where there are none, as measured on a card" in cells["below"][0]
    plan.show_plan(target, store, workspace.compute)
    assert lines(capsys)["train"][3:] == ["unknown", "unknown"], "on another device"


def test_damaged_rates_are_one_line(target, workspace):
    store = workspace.store
    store.check_writable()
    for text in (
        "{",
        "[1]",
        '{"ddpm8-16 cpu fp32": {"source": "x"}}',
        '{"ddpm8-16 cpu fp32": {"source": "x", "by_name": {"train": {"a": 1}}}}',
    ):
        (store.root / RATES).write_text(text)
        with pytest.raises(
            StoreError,
            match=r"rates\.json: unreadable \(.*\); delete .*rates\.json to plan without it$",
        ):
            plan.show_plan(target, store, workspace.compute)
