"""The one entry point: a composed configuration in, one task out.

journey experiment=digits                      the whole experiment, and its report
journey experiment=digits task=plan            what would run, and what is cached
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from journey import config, experiment, launch, preflight, specs
from journey.config import Task
from journey.stages import Workspace
from journey.store import Store, StoreError

CONF = Path(__file__).parent / "conf"
EXPECTED = (config.ConfigError, StoreError, launch.JobsFailedError)


def dispatch(run: config.Config, reports: Path) -> None:
    """Do what `task` says."""
    workspace = Workspace(Store(Path(run.artifacts)), run.compute, run.tracking, run.name)
    evaluation = experiment.evaluate(run)
    if run.task is not Task.plan:
        preflight.check(run)
    match run.task:
        case Task.plan:
            from journey.report import plan

            plan.show([evaluation], workspace.store)
        case Task.train:
            launch.run([s for s in specs.ancestors(evaluation) if isinstance(s, specs.Train)], workspace)
        case Task.sample:
            launch.run([experiment.journeys(run)], workspace)
        case Task.attribute:
            launch.run(list(evaluation.scores.values()), workspace)
        case Task.evaluate:
            launch.run([evaluation], workspace)
        case Task.report:
            launch.run([evaluation], workspace)
            from journey.report import write

            write.write(run, workspace, reports)


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def _run(composed: DictConfig) -> None:
    with one_line_errors():  # inside too: Hydra would print more than a line
        run = config.parse(composed)
        job = HydraConfig.get()
        reports = Path(run.reports) / run.name
        if job.mode is RunMode.MULTIRUN:  # every point of a sweep has its own report
            reports = reports / f"{job.job.num}-{job.job.override_dirname}".replace("/", "-")[:200]
        dispatch(run, reports)


def main() -> None:
    """The command `journey`."""
    config.register_schemas()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, instead of to Hydra's own printing
    with one_line_errors():
        _run()


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what users can mend into one line on standard error, and exit status 1."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues where this one stopped")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {_one_line(error)}")
    except EXPECTED as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        sys.exit(f"error: {error.filename or 'writing an artifact'}: {error.strerror}; the same command continues")


def _one_line(error: Exception) -> str:
    """Hydra's message and its cause, without the lines that suggest getting round the check."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        return f"{group}={option}: no such option; available: {', '.join(options)}"
    parts = [str(error), str(error.__cause__ or "")]
    lines = [line.strip() for part in parts for line in part.splitlines() if line.strip()]
    return "; ".join(line for line in lines if not line.startswith(("To append", "reference_type", "Config search", "provider")))


if __name__ == "__main__":
    main()
