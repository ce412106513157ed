"""What is said on the command line: help, what is refused before Hydra composes, and errors in one line."""

import argparse
import contextlib
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

MOST_POINTS = 10_000


WIDTH = 100  # letters of a line of help


CHOSEN = (*GROUPS, "method", "experiment")


HYDRA = (
    "hydra.searchpath", "hydra.verbose", "hydra/launcher", "hydra.launcher",
    "hydra/sweeper", "hydra.sweeper.n_trials", "hydra.sweeper.sampler", "hydra.sweeper.study_name", "hydra.sweeper.storage",
)  # fmt: skip


OPTUNA = "hydra/sweeper=optuna"


HELP = """journey: which training images guided each step of a diffusion model's sampling, proven by retraining

    journey experiment=digits                                    the whole experiment, and its report
    journey experiment=digits task=plan                          what would run, what is cached, what it will cost
    journey experiment=digits task=status                        what is done, runs, is queued or failed
    journey experiment=digits compute=slurm                      the same on a cluster; asked again, it goes on
    journey experiment=digits 'method=[journey,pixel]'           other methods
    journey experiment=digits retraining.num_subsets=64          a setting of a group
    journey -m experiment=digits attribution.num_samples=8,32      a sweep

Choices:
{groups}

Tasks: {tasks}
Settings, with their values: journey experiment=digits --cfg job
What came out: reports/<experiment>/index.html, and in Python: journey.open("experiment=digits")
Completion by the tab key: eval "$(journey --shell-completion install=bash)"   (or zsh, fish)
"""


COMPLETION = ("--shell-completion", "-sc")


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether anybody asks for help."""
    return any(word in ("--help", "-h") for word in words)


def asks_for_completion(words: Sequence[str]) -> bool:
    """Whether a shell asks what could come next: Hydra answers, and what is typed so far is nothing to refuse."""
    return any(word in COMPLETION for word in words)


def help_text(own: Sequence[type[Component]] = ()) -> str:
    """The choices of every group, and how to ask for them."""
    lines = []
    for group in sorted(
        path.name
        for path in compose.CONF.iterdir()
        if path.is_dir() and path.name not in ("shared", "hydra")
    ):
        choices = _choices_of(group) + [
            kind.name for kind in own if compose.group_of(kind) == group
        ]
        lines.append(
            textwrap.fill(
                ", ".join(choices),
                WIDTH,
                initial_indent=f"    {group:12}",
                subsequent_indent=" " * 16,
            )
        )
    return HELP.format(groups="\n".join(lines), tasks=", ".join(task.value for task in Task))


def _choices_of(group: str) -> list[str]:
    return sorted(path.stem for path in (compose.CONF / group).glob("*.yaml"))


class _Flags(argparse.ArgumentParser):
    """Those of Hydra's flags that leave to us which file is composed."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        for names in (
            ("--multirun", "-m"),
            ("--run", "-r"),
            ("--resolve",),
            ("--hydra-help",),
            ("--version",),
        ):
            self.add_argument(*names, action="store_true")
        self.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
        self.add_argument(
            "--info",
            "-i",
            nargs="?",
            choices=("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
        )
        self.add_argument("--package", "-p")
        self.add_argument("--config-dir", "-cd")
        self.add_argument("overrides", nargs="*")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (flags stand before all settings or after; journey --help)")


def check_command_line(words: Sequence[str]) -> None:
    """Refuse what Hydra would take for something else or stumble over, and every point of a sweep before the first one runs.

    Raises: ConfigError; HydraException or OmegaConfBaseException if an override cannot be composed.
    """
    given = _Flags().parse_args(words)
    searched = []
    if given.config_dir is not None:
        require(Path(given.config_dir).is_dir(), "--config-dir", given.config_dir, "a directory")
        _refuse_shadowed(Path(given.config_dir))
        searched = [f"hydra.searchpath=[file://{Path(given.config_dir).absolute()}]"]
    overrides = OverridesParser.create().parse_overrides(given.overrides)
    for override in overrides:
        _check_override(override)
    chosen = OPTUNA in given.overrides
    require(given.multirun or not chosen, OPTUNA, "a single run", "a sweep: journey -m")
    for point in itertools.islice(_points(overrides, chosen), None if given.multirun else 1):
        settings = compose_config([*searched, *point])
        if given.multirun:
            run = compose.parse(settings)
            refuse_numbers_for_booleans(point, settings)
            require(
                not chosen or run.task is Task.report,
                "task",
                run.task.value,
                f"report with {OPTUNA}: points have results",
            )


def _check_override(override: Override) -> None:
    key, value = override.key_or_group, override.value()
    require(key != "", override.input_line, "a value of nothing", "setting=value")
    removes = override.type is OverrideType.DEL
    require(
        not removes,
        override.input_line,
        "removal",
        "left out: settings cannot be removed; give another value",
    )
    ours = not key.startswith("hydra") or key.startswith(HYDRA)
    require(
        ours,
        key,
        value,
        f"left out: of Hydra's own settings there are {', '.join(HYDRA)}; a sweep: journey -m",
    )
    if key == "hydra.searchpath":
        for place in value if isinstance(value, list) else [value]:
            path = str(place).removeprefix("file://")
            if not path.startswith("pkg://"):
                require(
                    Path(path).is_dir(),
                    key,
                    place,
                    "a list of directories (or of packages, pkg://…)",
                )
                _refuse_shadowed(Path(path))
    several = key == "experiment" and isinstance(value, list)
    require(
        not several, key, value, "one experiment; two would be merged (a sweep: -m experiment=a,b)"
    )
    if key in CHOSEN and not override.is_sweep_override():
        names = value if key == "method" and isinstance(value, list) else [value]
        named = len(names) > 0 and all(isinstance(name, str) and name for name in names)
        require(named, key, value, f"one of its choices: {', '.join(_choices_of(key))}")
        require(len(set(names)) == len(names), key, value, "distinct")


def _points(overrides: list[Override], by_optuna: bool) -> Iterator[list[str]]:
    """The overrides of every point of a sweep, or of every corner of the space that Optuna chooses its points from."""
    choices = [_ends(override) if by_optuna else _choices(override) for override in overrides]
    _require_points(math.prod(map(len, choices)))
    return (list(point) for point in itertools.product(*choices))


def _ends(override: Override) -> list[str]:
    """Both ends of an interval, or of a range; of all else, its choices."""
    sweep = override.value()
    if not isinstance(sweep, (IntervalSweep, RangeSweep)):
        return _choices(override)
    ends = (
        (sweep.start, sweep.end) if isinstance(sweep, IntervalSweep) else (sweep.start, sweep.stop)
    )
    return [f"{override.get_key_element()}={value}" for value in ends]


def _choices(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line]
    sweep = override.value()
    listed = not isinstance(sweep, (Glob, IntervalSweep))
    said = override.input_line.partition("=")[2]
    require(
        listed, override.key_or_group, said, "swept over a list, a,b,c, or a range(start,stop,step)"
    )
    if isinstance(sweep, RangeSweep):  # which may be endless
        require(
            sweep.step != 0,
            override.key_or_group,
            "a range of step 0",
            "of steps that lead somewhere",
        )
        _require_points(-((sweep.start - sweep.stop) // sweep.step))
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _require_points(number: float) -> None:
    require(number > 0, "sweep", "no points", "at least one")
    require(number <= MOST_POINTS, "sweep", f"{number} points", f"at most {MOST_POINTS}")


def compose_config(words: list[str]) -> DictConfig:
    """What Hydra will compose."""
    for override in OverridesParser.create().parse_overrides(words):
        _check_override(override)
    try:
        with initialize_config_dir(str(compose.CONF), version_base="1.3"):
            found = hydra_compose("config", words, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        raise
    except (
        Exception
    ) as error:  # files that are no YAML, or no settings, make Hydra fail in many ways
        raise ConfigError(
            f"{shlex.join(words)}: cannot be composed: {type(error).__name__}: {error}"
        ) from None
    mode, swept = found.hydra.mode, found.hydra.sweeper.get("params")
    require(
        mode is None and not swept,
        "hydra.mode and hydra.sweeper",
        mode or swept,
        "left out; a sweep: journey -m",
    )
    with open_dict(found):
        del found["hydra"]
    return found


def refuse_numbers_for_booleans(overrides: Sequence[str], composed: DictConfig) -> None:
    """antithetic=2 would be taken for true.

    Raises: ConfigError.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        name = override.key_or_group
        _refuse_number_for_truth(name, override.value(), OmegaConf.select(composed, name))


def _refuse_number_for_truth(name: str, said: object, taken: object) -> None:
    if isinstance(said, list) and isinstance(taken, ListConfig):
        for pair in zip(said, taken, strict=False):
            _refuse_number_for_truth(name, *pair)
    elif isinstance(said, dict) and isinstance(taken, DictConfig):
        for key, value in said.items():
            _refuse_number_for_truth(f"{name}.{key}", value, taken.get(key))
    else:
        require(not isinstance(taken, bool) or isinstance(said, bool), name, said, "true or false")


def _refuse_shadowed(directory: Path) -> None:
    """A user's file called like one of ours would silently not be read; like one of our schemas, be read in its place."""
    if directory.resolve() == compose.CONF.resolve():
        return
    ours = sorted(path.relative_to(compose.CONF) for path in compose.CONF.rglob("*.yaml"))
    for name in (Path("schema"), Path("schema.yaml"), *ours):
        path = directory / name
        require(not path.exists(), str(path), name.stem, f"named otherwise: journey has {name}")


def open_streams() -> None:
    """Where output is closed, it goes nowhere; what a terminal's encoding lacks is replaced."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open until the end
        with contextlib.suppress(AttributeError):  # somebody else's stream
            getattr(sys, name).reconfigure(errors="replace")


def point_directory(number: int, overrides: str) -> str:
    """Of a point of a sweep: its number and what was set."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "=.,_+-") else "-" for c in overrides)
    return f"{number}-{safe}"[:200]


def distinguishing_overrides(points: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """What belongs to the points of a sweep, by what their overrides do not have in common.

    >>> told_apart({("experiment=smoke", "seed=0"): 1, ("experiment=smoke", "seed=1"): 2})
    {'seed=0': 1, 'seed=1': 2}
    """
    common = set.intersection(*map(set, points))
    return {
        " ".join(word for word in words if word not in common): of for words, of in points.items()
    }


def keyed_overrides(overrides: Sequence[str]) -> str:
    """The overrides that decide what is made, not what is done with it or where."""
    left_out = ("task=", "artifacts=", "reports=", "compute.workers=", "tracking")
    return shlex.join(text for text in overrides if not text.startswith(left_out))


def one_line_error(error: Exception) -> str:
    """Hydra's message and its cause, without the lines that suggest getting round the check."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if options := _choices_of(group):
            return f"{group}={option}: no such option; available: {', '.join(options)}"
    parts = [str(error), str(error.__cause__ or "")]
    lines = [line.strip() for part in parts for line in part.splitlines() if line.strip()]
    left_out = ("To append", "reference_type", "Config search", "provider")
    return printable("; ".join(line for line in lines if not line.startswith(left_out)))


def printable(text: str) -> str:
    """One line that a terminal can show and a person can read."""
    return "".join(c if c.isprintable() else " " for c in text)[:1000]
