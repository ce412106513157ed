"""The command `journey`: it composes a configuration and runs one task.

journey experiment=digits                      the whole experiment, and its report
journey experiment=digits task=plan            what would be computed, and its cost
journey experiment=digits task=status          how far it is, wherever it runs
"""

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.types import RunMode
from omegaconf import DictConfig

from journey import replay
from journey.cli import (
    OPTUNA,
    Composition,
    check_command_line,
    distinguishing_overrides,
    help_text,
    keyed_overrides,
    named_errors,
    one_line_errors,
    open_streams,
    refuse_numbers_for_booleans,
    refuse_without_effect,
    start_text,
    swept_settings,
    wants_completion,
    wants_help,
    wants_sweep,
    wants_version,
)
from journey.components import COMPONENTS
from journey.config import compose
from journey.config.run import RunConfig, Task
from journey.config.words import quote_words
from journey.data.images import describe_images
from journey.engine.checks import require
from journey.engine.graph import ancestors
from journey.engine.provenance import __version__
from journey.engine.spec import Component, Spec, cache_key
from journey.engine.store import Store, StoreError
from journey.engine.text import printable
from journey.engine.workspace import Workspace
from journey.evaluation.rows import objective_row
from journey.experiment import (
    check_data,
    check_machine,
    check_memory,
    prepare_experiment,
    record_images,
)
from journey.pipeline.interfaces import Evaluate, FullData, Result, Row, Train
from journey.report.directory import SWEEP, check_output, report_directory

MADE = {
    Task.train: "models of all images, as folders of diffusers",
    Task.sample: "trajectories, as arrays",
    Task.attribute: "scores.npy [candidate, step, query, train] of every method",
    Task.evaluate: "result.json",
}  # where a task ends with a list of artifacts
HEADLINES: dict[tuple[str, ...], list[Row]] = {}  # of every point of a sweep, by its overrides
REPORTS: dict[tuple[str, ...], Path] = {}  # the directories of their reports


def dispatch(run: RunConfig, reports: Path, words: str) -> Result | None:
    """Return the result of task=report, else None, after running the task.

    Args:
        run: The settings.
        reports: The directory of the report.
        words: The overrides that compose the run.
    """
    store = Store(Path(run.artifacts))
    if run.task is Task.verify:
        _verify(store)
        return None
    check_machine(run)
    check_output(run, reports)
    experiment, train = prepare_experiment(run, store)
    check_data(run, experiment, train, store)
    target = experiment.evaluation(run.evaluation, run.all_methods)
    if run.task is not Task.status:
        check_memory(run, target, store)
    group = run.name  # of a point of a sweep: with the name of the sweep
    if reports.parent.name.startswith(SWEEP):
        group = f"{run.name} {reports.parent.name}"
    workspace = Workspace(store, run.compute, run.tracking, group)
    if run.task in (Task.plan, Task.status):
        from journey.report import plan

        if run.task is Task.plan:
            print("\n".join(describe_images(run.dataset, train)))
        show = plan.show_plan if run.task is Task.plan else plan.show_status
        show(target, store, run.compute)
        return None
    for create in (False, True):  # both are checked before one is made
        for directory in (store, Store(reports.parent)):
            directory.check_writable(create)
    record_images(experiment.images, store)
    if run.task is Task.report:
        from journey.report import write

        return write.write_report(run, experiment, workspace, reports, words)
    targets: dict[Task, Sequence[Spec]] = {
        Task.train: _models_of_all_images(target),
        Task.sample: [experiment.trajectories],
        Task.attribute: list(target.scores.values()),
        Task.evaluate: [target],
        Task.export: [target],
    }
    specs = list(targets[run.task])
    num_cached = sum(store.find(spec) is not None for spec in specs)
    for _ in workspace.compute.make(specs, workspace):
        pass
    if run.task is Task.export:
        from journey.report import export

        export.write_bundle(run, experiment, workspace, reports, words)
        return None
    if run.task is Task.sample:
        from journey.report import write

        path = write.write_samples(run, experiment, workspace, reports)
        print(f"{path}: the final samples of {experiment.trajectories.num_queries} queries")
    counts = f"{len(specs) - num_cached} new, {num_cached} cached"
    print(f"task={run.task.value}: {MADE[run.task]} ({counts}):")
    for spec in specs:
        print(printable(f"    {store.root / cache_key(spec)}"))
    return None


def _models_of_all_images(target: Evaluate) -> list[Spec]:
    """Return the models that make the queries and that the scores are computed with."""
    models: dict[str, Spec] = {}
    for spec in [target.trajectories, *target.scores.values()]:
        for ancestor in ancestors(spec):
            if isinstance(ancestor, Train) and ancestor.subset == FullData():
                models[cache_key(ancestor)] = ancestor
    return [models[key] for key in sorted(models)]


def _verify(store: Store) -> None:
    """Print the damaged artifacts of a store; raise StoreError if there are some."""
    damaged = 0
    for line in store.verify():
        damaged += 1
        print(line, flush=True)
    if damaged:
        advice = "delete them, and the next run computes them again"
        raise StoreError(f"{store.root}: {damaged} damaged artifacts; {advice}")
    missing = "" if store.root.is_dir() else "no such directory, so "
    print(f"{store.root}: {missing}every artifact matches its manifest")


def _replay(words: list[str]) -> None:
    """Run `journey replay`: make a result again, and say in what it differs."""
    allowed = "result.json, and overrides of where to compute, such as compute=slurm"
    require(len(words) > 0, "journey replay", "", allowed)
    recorded = replay.read_result(Path(words[0]))
    overrides = quote_words(words[1:], COMPONENTS)
    run = replay.replayed_run(recorded, overrides)
    for line in [*replay.provenance_changes(recorded), *replay.setting_changes(recorded, run)]:
        print(f"differs: {line}", flush=True)
    result = dispatch(run, report_directory(run), shlex.join(["replay", *words]))
    if result is not None:
        print(replay.compare_rows(recorded, cast("list[Row]", result["rows"])))


def _run_single(composition: Composition) -> None:
    """Run the task of a command that needs nothing else of Hydra."""
    run, overrides = compose.parse(composition.settings), composition.hydra.overrides.task
    refuse_numbers_for_booleans(overrides, composition.settings)
    refuse_without_effect(run.without_effect(), overrides)
    dispatch(run, report_directory(run), keyed_overrides(overrides))


@hydra.main(config_path=str(compose.CONF), config_name="config", version_base="1.3")
def _run_by_hydra(settings: DictConfig) -> float | None:
    """Return the number that Optuna maximises, `evaluation.objective`, after running the task."""
    with one_line_errors():  # inside too: Hydra would print more than a line
        hydra_settings = HydraConfig.get()
        if hydra_settings.mode is RunMode.RUN:
            _run_single(Composition(settings, cast(DictConfig, hydra_settings)))
            return None
        run, overrides = compose.parse(settings), hydra_settings.overrides.task
        refuse_numbers_for_booleans(overrides, settings)
        # Each point has its own report.
        reports = report_directory(run, overrides, swept_settings(sys.argv[1:]))
        result = dispatch(run, reports, keyed_overrides(overrides))
        if result is None or not (headline := run.evaluation.headline(result)):
            return None
        HEADLINES[tuple(overrides)], REPORTS[tuple(overrides)] = headline, reports
        rows = cast("list[Row]", result["rows"])
        return float(objective_row(rows, headline, run.evaluation.objective)["value"])
    return None


def main(components: Sequence[type[Component]] = ()) -> None:
    """Run the command `journey`.

    Args:
        components: A user's own components, which are further choices of their groups.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are raised, not printed by Hydra
    open_streams()
    words = sys.argv[1:]
    with one_line_errors():
        compose.register_schemas(COMPONENTS, components)
        if wants_help(words) or not words:
            print(help_text(components) if words else start_text())
            return
        if wants_version(words):
            print(f"journey {__version__}")
            return
        if words[0] == "submit":
            from journey.report.submission import submit

            submit(words[1:])
            return
        if words[0] == "replay":
            _replay(words[1:])
            return
        composition = None
        if not wants_completion(words):
            words = quote_words(words, (*COMPONENTS, *components), wants_sweep(words))
            for given, quoted in zip(sys.argv[1:], words, strict=True):
                if given.replace(" ", "") != quoted.replace(" ", ""):
                    print(f"read as {printable(quoted)}", file=sys.stderr)
            sys.argv[1:] = words
            composition = check_command_line(words)
        if composition is not None:  # Hydra would compose it again, twice
            configure_log(composition.hydra.job_logging, composition.hydra.verbose)
            _run_single(composition)
            return
        if OPTUNA in words:
            sys.argv.append("hydra.sweeper.direction=maximize")  # the default is to minimise
        # Hydra writes its records of a sweep there; the reports have what matters.
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["JOURNEY_SCRATCH"] = scratch
            with named_errors():
                _run_by_hydra()
        if any(HEADLINES.values()):
            from rich.console import Console

            from journey.report import tables

            console = Console() if sys.stdout.isatty() else Console(width=200)
            points = distinguishing_overrides(HEADLINES)
            console.print(tables.sweep_table(points))
            swept = swept_settings(sys.argv[1:])
            path = tables.write_sweep(points, list(REPORTS.values()), swept)
            print(f"{path}: the table of the sweep, with its reports")


if __name__ == "__main__":
    main()
