"""The one entry point: a composed configuration in, one task out.

journey experiment=digits                      the whole experiment, and its report
journey experiment=digits task=plan            what would run, and what is cached
journey experiment=digits task=status          how far it is, wherever it runs
"""

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from journey.cli import (
    OPTUNA,
    asks_for_completion,
    asks_for_help,
    check_command_line,
    distinguishing_overrides,
    help_text,
    keyed_overrides,
    one_line_error,
    open_streams,
    point_directory,
    printable,
    refuse_numbers_for_booleans,
)
from journey.components import COMPONENTS
from journey.config import compose
from journey.config.run import RunConfig, Task
from journey.engine.checks import ConfigError
from journey.engine.graph import ancestors
from journey.engine.manifest import StoreError
from journey.engine.spec import Component
from journey.engine.store import Store
from journey.engine.workspace import Workspace
from journey.experiment import check_data, check_machine, prepare_experiment, record_images
from journey.launch.jobs import JobsFailedError
from journey.pipeline.interfaces import Train

EXPECTED = (ConfigError, StoreError)


MENDABLE = (
    "ENOSPC",
    "EDQUOT",
    "EFBIG",
    "EACCES",
    "EPERM",
    "EROFS",
    "ENAMETOOLONG",
    "ENOTDIR",
    "EISDIR",
    "ELOOP",
)


SWEPT: dict[
    tuple[str, ...], list[dict]
] = {}  # the headline of every point of a sweep, by its overrides


def dispatch(run: RunConfig, reports: Path, words: str) -> dict | None:
    """Do what `task` says; returns the result where there is a report. words: the overrides that compose the run."""
    store = Store(Path(run.artifacts))
    if run.task is Task.verify:
        return _verify(store)
    check_machine(run)
    experiment, train = prepare_experiment(run, store)
    check_data(run, experiment, train)
    target = experiment.evaluation(run.evaluation, run.all_methods)
    workspace = Workspace(store, run.compute, run.tracking, run.name)
    if run.task is Task.plan:
        from journey.report import plan

        return plan.show_plan(target, store, run.compute)
    if run.task is Task.status:
        from journey.report.plan import show_status

        return show_status(target, store, run.compute)
    for directory in (store, Store(reports.parent)):
        directory.writable()
    record_images(experiment.images, store)
    match run.task:
        case Task.train:
            _make([spec for spec in ancestors(target) if isinstance(spec, Train)], workspace)
        case Task.sample:
            _make([experiment.trajectories], workspace)
        case Task.attribute:
            _make(list(target.scores.values()), workspace)
        case Task.evaluate:
            _make([target], workspace)
        case Task.export:
            _make([target], workspace)
            from journey.report import export

            export.write_bundle(
                run, experiment, workspace, reports.with_name(f"{reports.name}-pack.tar.gz"), words
            )
        case Task.report:
            from journey.report import write

            return write.write_report(run, experiment, workspace, reports)
    return None


def _make(targets: list, workspace: Workspace) -> None:
    for _ in workspace.compute.make(targets, workspace):
        pass


def _verify(store: Store) -> None:
    damaged = 0
    for line in store.verify():
        damaged += 1
        print(line, flush=True)
    if damaged:
        raise StoreError(
            f"{store.root}: {damaged} damaged; what is deleted is made anew when it is asked for"
        )
    nothing = "" if store.root.is_dir() else "no such directory, so "
    print(f"{store.root}: {nothing}every payload is what its manifest says")


@hydra.main(config_path=str(compose.CONF), config_name="config", version_base="1.3")
def _run(composed: DictConfig) -> float | None:
    """Returns what a sweeper that chooses its points makes large: the first number of the headline."""
    with one_line_errors():  # inside too: Hydra would print more than a line
        run = compose.parse(composed)
        job = HydraConfig.get()
        refuse_numbers_for_booleans(job.overrides.task, composed)
        reports = Path(run.reports) / run.name
        point = job.job.override_dirname
        if job.mode is RunMode.MULTIRUN:  # every point of a sweep has its own report
            reports = reports / point_directory(job.job.num, point)
        result = dispatch(run, reports, keyed_overrides(job.overrides.task))
        headline = run.evaluation.headline(result) if result is not None else []
        if headline and job.mode is RunMode.MULTIRUN:
            SWEPT[tuple(job.overrides.task)] = headline
        return headline[0]["value"] if headline else None


def main(kinds: Sequence[type[Component]] = ()) -> None:
    """The command `journey`, with a user's own kinds as further choices."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, instead of to Hydra's own printing
    open_streams()
    with one_line_errors():
        compose.register_schemas(COMPONENTS, kinds)
        if asks_for_help(sys.argv[1:]):
            print(help_text(kinds))
            return
        if not asks_for_completion(sys.argv[1:]):
            check_command_line(sys.argv[1:])
        if OPTUNA in sys.argv:
            sys.argv.append(
                "hydra.sweeper.direction=maximize"
            )  # else it would look for the smallest
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["JOURNEY_SCRATCH"] = (
                scratch  # where Hydra notes what a sweep was; the reports say so
            )
            _run()
        if any(SWEPT.values()):
            from rich.console import Console

            from journey.report import tables

            (Console() if sys.stdout.isatty() else Console(width=200)).print(
                tables.sweep_table(distinguishing_overrides(SWEPT))
            )


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what users can mend into one line on standard error, and exit status 1."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues where this one stopped")
    except BrokenPipeError:  # whoever read our output has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {one_line_error(error)}")
    except EXPECTED as error:
        sys.exit(f"error: {printable(str(error))}")
    except JobsFailedError as error:  # a line for each
        sys.exit(f"error: {error}")
    except OSError as error:
        if errno.errorcode.get(error.errno) not in MENDABLE:
            raise
        where = printable(str(error.filename or "writing"))
        sys.exit(f"error: {where}: {error.strerror}; the same command continues")


if __name__ == "__main__":
    main()
