"""The command line: help, overrides that are refused before Hydra composes, errors as one line."""

import argparse
import contextlib
import errno
import importlib.util
import itertools
import math
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hydra.core.override_parser.types import (
    Glob,
    IntervalSweep,
    Override,
    OverrideType,
    Quote,
    QuotedString,
    RangeSweep,
)
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from journey.config import compose, foreign
from journey.config.run import GROUPS, Task
from journey.config.words import SEARCHPATH, parse_words
from journey.engine.checks import EXTRAS, ConfigError, did_you_mean, require
from journey.engine.provenance import __version__
from journey.engine.spec import Component
from journey.engine.store import StoreError
from journey.engine.text import printable
from journey.launch.jobs import JobsFailedError
from journey.report.directory import check_output, report_directory

MOST_POINTS = 10_000  # of a sweep
SOLVABLE = {  # errors of the system that a user can solve
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
}  # fmt: skip
HELP_WIDTH = 100  # characters of a line
OPTUNA = "hydra/sweeper=optuna"
HYDRA_SETTINGS = (
    SEARCHPATH, "hydra.verbose", "hydra/launcher", "hydra.launcher", "hydra/sweeper",
    "hydra.sweeper.n_trials", "hydra.sweeper.sampler", "hydra.sweeper.study_name",
    "hydra.sweeper.storage",
)  # fmt: skip

# ruff: noqa: E501 - the lines of the help
START = """journey {version}: which training images influenced each step of a diffusion model's sampling

    journey experiment=digits                           an example: train, attribute, retrain, evaluate, report
    journey experiment=my_images dataset.root=FOLDER    images of yours: train, sample, attribute, report
    journey experiment=my_checkpoint dataset.root=FOLDER 'model.checkpoints=[FOLDER]'    and a model of yours
    journey --help                                      all choices and tasks, and more examples

Add task=plan to see what would be computed. Guides: docs/README.md
"""
HELP = """journey: which training images influenced each step of a diffusion model's sampling

    journey experiment=digits                                    the whole experiment, and its report
    journey experiment=digits task=plan                          what would be computed, and its cost
    journey experiment=digits task=status                        what is done, running, queued, failed
    journey experiment=digits compute=slurm                      the same on a cluster, resumable
    journey experiment=digits 'method=[journey,pixel]'           other methods
    journey experiment=digits retraining.num_subsets=64          a setting of a group
    journey -m experiment=digits attribution.num_samples=8,32    a sweep
    journey submit bundle.tar.gz mine.npz card.yaml              evaluate scores on a benchmark bundle
    journey replay result.json                                   make a result again, and compare

Choices:
{groups}

Tasks:
{tasks}

Settings, with their values: journey experiment=digits --cfg job; explained: docs/settings.md
Results: reports/<name>/index.html (name=… chooses another), and in Python: journey.load("experiment=digits")
Completion by the tab key: eval "$(journey --shell-completion install=bash)"   (or zsh, fish)
"""


TASKS = {
    Task.train: "the models of all images that the methods use; none of the retrained ones",
    Task.sample: "the queries, and their picture: samples.png",
    Task.attribute: "the scores of every method",
    Task.evaluate: "the result of the evaluation, with everything that it needs, retrained models too",
    Task.report: "the default: all of it, and the page",
    Task.plan: "nothing: prints what would be computed, and its cost",
    Task.status: "nothing: prints what is done, running, queued or failed",
    Task.verify: "nothing: checks every artifact against its checksums",
    Task.export: "a benchmark bundle, with which others evaluate their scores",
}


def start_text() -> str:
    """Return what the command prints without words: the first commands."""
    return START.format(version=__version__)


def wants_help(words: Sequence[str]) -> bool:
    """Return whether the words ask for help."""
    return any(word in ("--help", "-h") for word in words)


def wants_version(words: Sequence[str]) -> bool:
    """Return whether the words ask for the version."""
    return "--version" in words


def wants_completion(words: Sequence[str]) -> bool:
    """Return whether a shell asks for completions, which Hydra answers. There are no other words."""
    return len(words) == 2 and words[0] in ("--shell-completion", "-sc")


def wants_sweep(words: Sequence[str]) -> bool:
    """Return whether the words ask for a sweep."""
    return any(word in ("--multirun", "-m") for word in words)


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
        text = f"    {group:12}" + ", ".join(compose.choices(group) + own)
        lines.append(textwrap.fill(text, HELP_WIDTH, subsequent_indent=" " * 16))
    tasks = [f"    {task.value:12}{text}" for task, text in TASKS.items()]
    return HELP.format(groups="\n".join(lines), tasks="\n".join(tasks))


class Composition(NamedTuple):
    """What Hydra composes."""

    settings: DictConfig  # of the run
    hydra: DictConfig  # its own


class _Flags(argparse.ArgumentParser):
    """Those of Hydra's flags that do not change which file is composed."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self.add_argument("--multirun", "-m", action="store_true")
        self.add_argument("--run", "-r", action="store_true")
        for name in ("--resolve", "--hydra-help"):
            self.add_argument(name, action="store_true")
        self.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
        topics = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
        self.add_argument("--info", "-i", nargs="?", choices=topics)
        self.add_argument("--package", "-p")
        self.add_argument("--config-dir", "-cd")
        self.add_argument("overrides", nargs="*")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (flags stand before all settings or after; journey --help)")


def check_command_line(words: Sequence[str]) -> Composition | None:
    """Check the words, and every point of a sweep before the first one runs.

    Returns:
        What a single run is composed to; None if Hydra has more to do, such as a sweep.

    Raises:
        ConfigError: Something is refused, such as what Hydra would take for something else. An
            override that cannot be composed raises Hydra's or OmegaConf's error.
        ModuleNotFoundError: Optuna is not installed.
    """
    # 1. Check every word by itself.
    flags = _Flags().parse_args(words)
    searchpath = []
    if flags.config_dir is not None:
        directory = Path(flags.config_dir)
        is_there = flags.config_dir != "" and directory.is_dir()
        require(is_there, "--config-dir", flags.config_dir, "a directory")
        foreign.refuse_shadowed(directory)
        place = QuotedString(f"file://{directory.absolute()}", Quote.single).with_quotes()
        searchpath = [f"{SEARCHPATH}=[{place}]"]
    overrides = parse_words(flags.overrides)
    for override in overrides:
        _check_override(override)
    optuna = OPTUNA in flags.overrides
    if optuna and importlib.util.find_spec("optuna") is None:
        raise ModuleNotFoundError("optuna", name="optuna")
    require(flags.multirun or not optuna, OPTUNA, "a single run", "a sweep: journey -m")

    # 2. Compose the points: combinations of choices; of Optuna's space, its corners.
    choices = [_ends(override) if optuna else _choices(override) for override in overrides]
    _require_points(math.prod(map(len, choices)))
    points = itertools.product(*choices)
    swept = [override.key_or_group for override in overrides if override.is_sweep_override()]
    unused: list[dict[str, str]] = []
    for point in points if flags.multirun else itertools.islice(points, 1):
        composition = _compose([*searchpath, *point])
        if flags.multirun:
            run = compose.parse(composition.settings)
            refuse_numbers_for_booleans(point, composition.settings)
            allowed = f"report with {OPTUNA}, which compares results"
            require(not optuna or run.task is Task.report, "task", run.task.value, allowed)
            check_output(run, report_directory(run, point, swept))
            unused.append(run.without_effect())
    if unused:  # at every point: others of a grid may well be alike
        common = set.intersection(*map(set, unused))
        refuse_without_effect({name: unused[0][name] for name in common}, flags.overrides)

    # 3. Anything but overrides of the run's own settings is for Hydra.
    others = vars(flags).keys() - {"overrides", "config_dir"}
    for_hydra = any(getattr(flags, name) for name in others)
    for override in overrides:
        key = override.key_or_group
        names_hydra = key.startswith("hydra") and key != SEARCHPATH
        for_hydra = for_hydra or names_hydra or override.is_sweep_override()
    return None if for_hydra else composition


def swept_settings(words: Sequence[str]) -> list[str]:
    """Return the settings over which the words of a command sweep."""
    overrides = parse_words(_Flags().parse_args(words).overrides)
    return [override.key_or_group for override in overrides if override.is_sweep_override()]


def _check_override(override: Override) -> None:
    """Refuse an override that no command may have."""
    key, value, text = override.key_or_group, override.value(), str(override.input_line)
    require(key != "", text, "a value without a setting", "setting=value")
    allowed = "left out: settings cannot be removed; give another value"
    require(override.type is not OverrideType.DEL, text, "removal", allowed)
    supported = key.startswith(HYDRA_SETTINGS) and "_target_" not in text
    allowed = f"supported settings of Hydra: {', '.join(HYDRA_SETTINGS)}; a sweep: journey -m"
    require(supported or not key.startswith("hydra"), key, value, f"left out; {allowed}")
    if key == SEARCHPATH:
        for place in value if isinstance(value, list) else [value]:
            path = str(place).removeprefix("file://")
            require(path != "" and Path(path).is_dir(), key, place, "a list of directories")
            foreign.refuse_shadowed(Path(path))
    if key == "hydra.sweeper.n_trials":
        possible = isinstance(value, int) and 1 <= value <= MOST_POINTS
        require(possible, key, value, f"in 1…{MOST_POINTS}")
    several = key == "experiment" and isinstance(value, list)
    allowed = "one experiment, since two would be merged (a sweep: -m experiment=a,b)"
    require(not several, key, value, allowed)
    if key in (*GROUPS, "method", "experiment") and not override.is_sweep_override():
        names = value if key == "method" and isinstance(value, list) else [value]
        named = len(names) > 0 and all(isinstance(name, str) and name for name in names)
        named = named and ".." not in text  # a file that is in no directory of choices
        require(named, key, value, f"one of its choices: {', '.join(compose.choices(key))}")
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
    """Return the values of an override as overrides; refuse those that cannot be listed."""
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
    """Return the configuration that Hydra composes.

    Raises:
        ConfigError: An override is refused, or files cannot be composed.
        ConfigCompositionException: A value has another type.
        OmegaConfBaseException: A value cannot be converted or resolved.
    """
    return _compose(words).settings


def _compose(words: list[str]) -> Composition:
    for override in parse_words(words):
        _check_override(override)
    try:
        composed = compose.compose_words(words)
    except ConfigCompositionException as error:
        unknown = _unknown_key(error, words)
        if unknown is None:
            raise
        raise unknown from None
    foreign.refuse_from_files(composed, words)
    hydra = composed.hydra
    with open_dict(composed):
        del composed["hydra"]
    return Composition(composed, hydra)


def _unknown_key(error: Exception, words: list[str]) -> ConfigError | None:
    """Return an error that lists the settings there are, in place of Hydra's for an unknown one."""
    match = re.match(r"Could not override '([\w.]+)'", str(error))
    if match is None or not isinstance(error.__cause__, ConfigAttributeError | ConfigKeyError):
        return None
    key = match[1]
    rest = [word for word in words if not word.lstrip("+").startswith(key)]
    parent, _, leaf = key.rpartition(".")
    try:
        composed = compose.compose_words(rest)
        node = OmegaConf.select(composed, parent) if parent else composed
    except (HydraException, OmegaConfBaseException, ConfigError):
        return None
    word = next((word for word in words if word.lstrip("+").startswith(f"{key}=")), key)
    settings = _setting_names(OmegaConf.to_container(composed))
    elsewhere = sorted((name for name in settings if name.endswith(f".{leaf}")), key=len)[:3]
    advice = did_you_mean(key, settings)
    if elsewhere and not advice:
        advice = f"; did you mean {' or '.join(elsewhere)}?"
    if not isinstance(node, DictConfig):
        return ConfigError(f"{word}: no such key{advice or '; --cfg job prints all settings'}")
    names = ", ".join(str(name) for name in node if name != "hydra") or "no settings"
    component = getattr(OmegaConf.get_type(node), "name", "")
    choice = f" with {parent}={component}" if parent in GROUPS else ""
    return ConfigError(f"{word}: no such key{choice}; allowed here: {names}{advice}")


def _setting_names(composed: object, prefix: str = "") -> list[str]:
    """Return the names of all settings, and of their groups, in a composed configuration."""
    names = []
    if isinstance(composed, dict):
        for key, value in composed.items():
            if prefix or key != "hydra":
                names += [f"{prefix}{key}", *_setting_names(value, f"{prefix}{key}.")]
    return names


def refuse_numbers_for_booleans(overrides: Sequence[str], composed: DictConfig) -> None:
    """Refuse antithetic=2, which OmegaConf takes for true."""
    for override in parse_words(overrides):
        name = override.key_or_group
        _refuse_number(name, override.value(), OmegaConf.select(composed, name))


def refuse_without_effect(unused: dict[str, str], overrides: Sequence[str]) -> None:
    """Refuse overrides of settings that have no effect, all others being as they are.

    Args:
        unused: Such settings, with the values of others that would give them an effect.
        overrides: The overrides. Experiments may set what others of their settings make useless.

    Raises:
        ConfigError: An override has no effect.
    """
    for override in parse_words(overrides):
        given = str(override.input_line).partition("=")[2]
        for name in _set_by(override.key_or_group, override.value()):
            for setting, condition in unused.items():
                changed = name == setting or name.startswith(f"{setting}.")
                allowed = f"left out: it has no effect unless {condition}"
                require(not changed, name, given, allowed)


def _set_by(name: str, value: object) -> list[str]:
    """Return the names of the settings that an override sets."""
    if not isinstance(value, dict):
        return [name]
    names = []
    for key, item in value.items():
        names += _set_by(f"{name}.{key}", item)
    return names


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
    distinguishing = {}
    for overrides, value in points.items():
        distinguishing[" ".join(word for word in overrides if word not in common)] = value
    return distinguishing


def keyed_overrides(overrides: Sequence[str]) -> str:
    """Return the overrides that determine artifacts, quoted for a shell."""
    left_out = ("task=", "artifacts=", "reports=", "compute.workers=", "tracking")
    return shlex.join(text for text in overrides if not text.startswith(left_out))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print errors that users can solve as one line on standard error, and exit with status 1.

    Raises:
        OSError: The system's error is none that a user can solve.
        ModuleNotFoundError: The module is of no optional package.
    """
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues where this one stopped")
    except BrokenPipeError:  # the reader of our output has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if (name := str(error.name).partition(".")[0]) not in EXTRAS:
            raise
        extra = EXTRAS[name]
        sys.exit(f"error: the package {name} is not installed: pip install 'journey[{extra}]'")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {_hydra_message(error)}")
    except (ConfigError, StoreError) as error:
        sys.exit(f"error: {printable(str(error))}")
    except JobsFailedError as error:  # a line for each job
        sys.exit("error: " + "\n".join(map(printable, str(error).splitlines())))
    except OSError as error:
        if error.errno not in SOLVABLE:
            raise
        where = printable(str(error.filename or "writing"))
        sys.exit(f"error: {where}: {error.strerror}; the same command continues")


@contextlib.contextmanager
def named_errors() -> Iterator[None]:
    """Say of which settings the errors of Optuna are: nothing else of ours calls it.

    Raises:
        ConfigError: Optuna refuses its settings or its storage.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("optuna", "sqlalchemy", "sqlite3"):
            raise
        settings = "hydra.sweeper.storage, study_name, sampler and n_trials"
        raise ConfigError(f"{settings}: Optuna says: {error}") from None


def _hydra_message(error: Exception) -> str:
    """Return Hydra's message and its cause without the advice to circumvent the schema."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if options := compose.choices(group):
            available = f"{', '.join(options)}{did_you_mean(option, options)}"
            return f"{group}={option}: no such option; available: {available}"
    left_out = ("To append", "reference_type", "Config search", "provider")
    shown = []
    for line in [*str(error).splitlines(), *str(error.__cause__ or "").splitlines()]:
        if line.strip() and not line.strip().startswith(left_out):
            shown.append(line.strip())
            if match := re.search(r"value '(.*)', expected one of \[(.*)\]", line):
                shown[-1] += did_you_mean(match[1], match[2].split(", "))
    return printable("; ".join(shown))
