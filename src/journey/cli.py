"""The command line: help, overrides that are refused before Hydra composes, errors as one line."""

import argparse
import contextlib
import errno
import itertools
import math
import os
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, OverrideType, RangeSweep
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from journey.config import compose
from journey.config.run import GROUPS, Task
from journey.engine.checks import ConfigError, require
from journey.engine.spec import Component
from journey.engine.store import StoreError
from journey.launch.jobs import JobsFailedError
from journey.report.directory import check_output, point_directory

MOST_POINTS = 10_000  # of a sweep
SOLVABLE = {  # errors of the system that a user can solve
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
}  # fmt: skip
HELP_WIDTH = 100  # characters of a line
OPTUNA = "hydra/sweeper=optuna"
HYDRA_SETTINGS = (
    "hydra.searchpath", "hydra.verbose", "hydra/launcher", "hydra.launcher", "hydra/sweeper",
    "hydra.sweeper.n_trials", "hydra.sweeper.sampler", "hydra.sweeper.study_name",
    "hydra.sweeper.storage",
)  # fmt: skip

# ruff: noqa: E501 - the lines of the help
HELP = """journey: which training images influenced each step of a diffusion model's sampling

    journey experiment=digits                                    the whole experiment, and its report
    journey experiment=digits task=plan                          what would be computed, and its cost
    journey experiment=digits task=status                        what is done, running, queued, failed
    journey experiment=digits compute=slurm                      the same on a cluster, resumable
    journey experiment=digits 'method=[journey,pixel]'           other methods
    journey experiment=digits retraining.num_subsets=64          a setting of a group
    journey -m experiment=digits attribution.num_samples=8,32    a sweep

Choices:
{groups}

Tasks: {tasks}
Settings, with their values: journey experiment=digits --cfg job
Results: reports/<experiment>/index.html, and in Python: journey.load("experiment=digits")
Completion by the tab key: eval "$(journey --shell-completion install=bash)"   (or zsh, fish)
"""


def wants_help(words: Sequence[str]) -> bool:
    """Return whether the words ask for help."""
    return any(word in ("--help", "-h") for word in words)


def wants_completion(words: Sequence[str]) -> bool:
    """Return whether a shell asks for completions, which Hydra answers."""
    return any(word in ("--shell-completion", "-sc") for word in words)


def help_text(components: Sequence[type[Component]] = ()) -> str:
    """Return the help: examples, the choices of every group, and the tasks.

    Args:
        components: A user's own components, which are choices too.
    """
    lines = []
    for path in sorted(compose.CONF.iterdir()):
        group = path.name
        if not path.is_dir() or group == "hydra":
            continue
        own = [c.name for c in components if compose.group_of(c) == group]
        text = ", ".join(_choices_of_group(group) + own)
        first, others = f"    {group:12}", " " * 16
        lines.append(
            textwrap.fill(text, HELP_WIDTH, initial_indent=first, subsequent_indent=others)
        )
    return HELP.format(groups="\n".join(lines), tasks=", ".join(task.value for task in Task))


def _choices_of_group(group: str) -> list[str]:
    return sorted(path.stem for path in (compose.CONF / group).glob("*.yaml"))


class _Flags(argparse.ArgumentParser):
    """Those of Hydra's flags that do not change which file is composed."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self.add_argument("--multirun", "-m", action="store_true")
        self.add_argument("--run", "-r", action="store_true")
        for name in ("--resolve", "--hydra-help", "--version"):
            self.add_argument(name, action="store_true")
        self.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
        topics = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
        self.add_argument("--info", "-i", nargs="?", choices=topics)
        self.add_argument("--package", "-p")
        self.add_argument("--config-dir", "-cd")
        self.add_argument("overrides", nargs="*")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (flags stand before all settings or after; journey --help)")


def check_command_line(words: Sequence[str]) -> None:
    """Check the words, and every point of a sweep before the first one runs.

    Raises:
        ConfigError: Something is refused, such as what Hydra would take for something else. An
            override that cannot be composed raises Hydra's or OmegaConf's error.
    """
    flags = _Flags().parse_args(words)
    searchpath = []
    if flags.config_dir is not None:
        directory = Path(flags.config_dir)
        require(directory.is_dir(), "--config-dir", flags.config_dir, "a directory")
        _refuse_shadowed(directory)
        searchpath = [f"hydra.searchpath=[file://{directory.absolute()}]"]
    overrides = OverridesParser.create().parse_overrides(flags.overrides)
    for override in overrides:
        _check_override(override)
    optuna = OPTUNA in flags.overrides
    require(flags.multirun or not optuna, OPTUNA, "a single run", "a sweep: journey -m")

    # A sweep has a point for each combination of choices; of Optuna's space, its corners.
    choices = [_ends(override) if optuna else _choices(override) for override in overrides]
    _require_points(math.prod(map(len, choices)))
    points = itertools.product(*choices)
    for number, point in enumerate(points if flags.multirun else itertools.islice(points, 1)):
        settings, dirname = _compose([*searchpath, *point])
        if flags.multirun:
            run = compose.parse(settings)
            refuse_numbers_for_booleans(point, settings)
            allowed = f"report with {OPTUNA}, which compares results"
            require(not optuna or run.task is Task.report, "task", run.task.value, allowed)
            check_output(run, Path(run.reports, run.name, point_directory(number, dirname)))


def _check_override(override: Override) -> None:
    """Check one override.

    Raises:
        ConfigError: It is refused.
    """
    key, value, text = override.key_or_group, override.value(), str(override.input_line)
    require(key != "", text, "a value without a setting", "setting=value")
    removes = override.type is OverrideType.DEL
    allowed = "left out: settings cannot be removed; give another value"
    require(not removes, text, "removal", allowed)
    supported = not key.startswith("hydra") or key.startswith(HYDRA_SETTINGS)
    listed = ", ".join(HYDRA_SETTINGS)
    allowed = f"left out; supported settings of Hydra: {listed}; a sweep: journey -m"
    require(supported, key, value, allowed)
    if key == "hydra.searchpath":
        for place in value if isinstance(value, list) else [value]:
            path = str(place).removeprefix("file://")
            if not path.startswith("pkg://"):
                allowed = "a list of directories (or of packages, pkg://…)"
                require(Path(path).is_dir(), key, place, allowed)
                _refuse_shadowed(Path(path))
    several = key == "experiment" and isinstance(value, list)
    allowed = "one experiment, since two would be merged (a sweep: -m experiment=a,b)"
    require(not several, key, value, allowed)
    if key in (*GROUPS, "method", "experiment") and not override.is_sweep_override():
        names = value if key == "method" and isinstance(value, list) else [value]
        named = len(names) > 0 and all(isinstance(name, str) and name for name in names)
        require(named, key, value, f"one of its choices: {', '.join(_choices_of_group(key))}")
        require(len(set(names)) == len(names), key, value, "distinct")


def _ends(override: Override) -> list[str]:
    """Return the ends of an interval or range, as overrides; the choices of any other override."""
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        ends = (sweep.start, sweep.end)
    elif isinstance(sweep, RangeSweep):
        ends = (sweep.start, sweep.stop)
    else:
        return _choices(override)
    return [f"{override.get_key_element()}={value}" for value in ends]


def _choices(override: Override) -> list[str]:
    """Return the values of an override as overrides.

    Raises:
        ConfigError: They cannot be listed.
    """
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key, sweep = override.key_or_group, override.value()
    listed = not isinstance(sweep, (Glob, IntervalSweep))
    text = str(override.input_line).partition("=")[2]
    require(listed, key, text, "swept over a list, a,b,c, or a range(start,stop,step)")
    if isinstance(sweep, RangeSweep):  # which may be endless
        start, stop, step = (float(end or 0) for end in (sweep.start, sweep.stop, sweep.step))
        require(step != 0, key, "a range of step 0", "a range whose step is not 0")
        _require_points(-((start - stop) // step))
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _require_points(number: float) -> None:
    require(number > 0, "sweep", "no points", "at least one")
    require(number <= MOST_POINTS, "sweep", f"{number:.0f} points", f"at most {MOST_POINTS}")


def compose_config(words: list[str]) -> DictConfig:
    """Return what Hydra composes.

    Raises:
        ConfigError: An override is refused, or files cannot be composed.
        HydraException: An override names nothing, or a value has another type.
        OmegaConfBaseException: A value cannot be converted or resolved.
    """
    return _compose(words)[0]


def _compose(words: list[str]) -> tuple[DictConfig, str]:
    """Return what Hydra composes, and the overrides as it names a point of a sweep by them.

    Raises:
        ConfigError: As `compose_config`.
        HydraException: As `compose_config`.
        OmegaConfBaseException: As `compose_config`.
    """
    for override in OverridesParser.create().parse_overrides(words):
        _check_override(override)
    try:
        with initialize_config_dir(str(compose.CONF), version_base="1.3"):
            composed = hydra_compose("config", words, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:  # files that are not YAML make Hydra fail in many ways
        problem = f"cannot be composed: {type(error).__name__}: {error}"
        raise ConfigError(f"{shlex.join(words)}: {problem}") from None
    mode, swept = composed.hydra.mode, composed.hydra.sweeper.get("params")
    unset = mode is None and not swept
    allowed = "left out; a sweep: journey -m"
    require(unset, "hydra.mode and hydra.sweeper", mode or swept, allowed)
    dirname = composed.hydra.job.override_dirname
    with open_dict(composed):
        del composed["hydra"]
    return composed, dirname


def refuse_numbers_for_booleans(overrides: Sequence[str], composed: DictConfig) -> None:
    """Refuse antithetic=2, which OmegaConf takes for true."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        name = override.key_or_group
        _refuse_number(name, override.value(), OmegaConf.select(composed, name))


def _refuse_number(name: str, given: object, composed: object) -> None:
    if isinstance(given, list) and isinstance(composed, ListConfig):
        for pair in zip(given, composed, strict=False):
            _refuse_number(name, *pair)
    elif isinstance(given, dict) and isinstance(composed, DictConfig):
        for key, value in given.items():
            _refuse_number(f"{name}.{key}", value, composed.get(key))
    else:
        agrees = not isinstance(composed, bool) or isinstance(given, bool)
        require(agrees, name, given, "true or false")


def _refuse_shadowed(directory: Path) -> None:
    """Refuse a user's file with the name of one of ours: one of the two would never be read."""
    if directory.resolve() == compose.CONF.resolve():
        return
    ours = sorted(path.relative_to(compose.CONF) for path in compose.CONF.rglob("*.yaml"))
    for name in (Path("schema"), Path("schema.yaml"), *ours):
        path = directory / name
        allowed = f"renamed: journey has its own {name}"
        require(not path.exists(), str(path), name.stem, allowed)


def open_streams() -> None:
    """Drop output where a stream is closed, and replace characters that a terminal lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open until the end
        with contextlib.suppress(AttributeError):  # another program's stream
            getattr(sys, name).reconfigure(errors="replace")


def distinguishing_overrides(points: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return the values of the points of a sweep, by the overrides that not all points have.

    >>> distinguishing_overrides({("experiment=smoke", "seed=0"): 1, ("experiment=smoke",): 2})
    {'seed=0': 1, '': 2}
    """
    common = set.intersection(*map(set, points))
    named = {}
    for overrides, value in points.items():
        named[" ".join(word for word in overrides if word not in common)] = value
    return named


def keyed_overrides(overrides: Sequence[str]) -> str:
    """Return the overrides that determine artifacts, quoted for a shell."""
    left_out = ("task=", "artifacts=", "reports=", "compute.workers=", "tracking")
    return shlex.join(text for text in overrides if not text.startswith(left_out))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print errors that users can solve as one line on standard error, and exit with status 1.

    Raises:
        OSError: The system's error is none that a user can solve.
    """
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues where this one stopped")
    except BrokenPipeError:  # the reader of our output has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {_hydra_message(error)}")
    except (ConfigError, StoreError) as error:
        sys.exit(f"error: {printable(str(error))}")
    except JobsFailedError as error:  # a line for each job
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in SOLVABLE:
            raise
        where = printable(str(error.filename or "writing"))
        sys.exit(f"error: {where}: {error.strerror}; the same command continues")


def _hydra_message(error: Exception) -> str:
    """Return Hydra's message and its cause without the advice to circumvent the schema."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if options := _choices_of_group(group):
            return f"{group}={option}: no such option; available: {', '.join(options)}"
    lines = [*str(error).splitlines(), *str(error.__cause__ or "").splitlines()]
    left_out = ("To append", "reference_type", "Config search", "provider")
    shown = [line.strip() for line in lines if line.strip()]
    return printable("; ".join(line for line in shown if not line.startswith(left_out)))


def printable(text: str) -> str:
    """Return text as one line that a terminal can show, at most 1,000 characters."""
    return "".join(c if c.isprintable() else " " for c in text)[:1000]
