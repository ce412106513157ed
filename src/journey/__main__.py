"""The command `journey`: it composes a configuration and runs one task.

journey experiment=digits                      the whole experiment, and its report
journey experiment=digits task=plan            what would be computed, and its cost
journey experiment=digits task=status          how far it is, wherever it runs
"""

import os
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
    printable,
    refuse_numbers_for_booleans,
    refuse_without_effect,
    wants_completion,
    wants_help,
    wants_sweep,
)
from journey.components import COMPONENTS
from journey.config import compose
from journey.config.run import RunConfig, Task
from journey.config.words import quote_words
from journey.data.images import describe_images
from journey.engine.graph import ancestors
from journey.engine.spec import Component, Spec
from journey.engine.store import Store, StoreError
from journey.engine.workspace import Workspace
from journey.evaluation.rows import objective_row
from journey.experiment import (
    check_data,
    check_machine,
    check_memory,
    prepare_experiment,
    record_images,
)
from journey.pipeline.interfaces import Result, Row, Train
from journey.report.directory import check_output, point_directory

HEADLINES: dict[tuple[str, ...], list[Row]] = {}  # of every point of a sweep, by its overrides


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
    workspace = Workspace(store, run.compute, run.tracking, run.name)
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

        return write.write_report(run, experiment, workspace, reports)
    targets: dict[Task, Sequence[Spec]] = {
        Task.train: [spec for spec in ancestors(target) if isinstance(spec, Train)],
        Task.sample: [experiment.trajectories],
        Task.attribute: list(target.scores.values()),
        Task.evaluate: [target],
        Task.export: [target],
    }
    for _ in workspace.compute.make(list(targets[run.task]), workspace):
        pass
    if run.task is Task.export:
        from journey.report import export

        export.write_bundle(run, experiment, workspace, reports, words)
    return None


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


def _run_single(composition: Composition) -> None:
    """Run the task of a command that needs nothing else of Hydra."""
    run, overrides = compose.parse(composition.settings), composition.hydra.overrides.task
    refuse_numbers_for_booleans(overrides, composition.settings)
    refuse_without_effect(run.without_effect(), overrides)
    dispatch(run, Path(run.reports) / run.name, keyed_overrides(overrides))


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
        job = hydra_settings.job
        directory = point_directory(job.num, job.override_dirname)
        reports = Path(run.reports) / run.name / directory
        result = dispatch(run, reports, keyed_overrides(overrides))
        if result is None or not (headline := run.evaluation.headline(result)):
            return None
        HEADLINES[tuple(overrides)] = headline
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
        if wants_help(words):
            print(help_text(components))
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
            console.print(tables.sweep_table(distinguishing_overrides(HEADLINES)))


if __name__ == "__main__":
    main()
