"""Commands in processes forked from one that has imported the heavy packages.

It imports little: each process imports it.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from journey import __main__ as entry

torch.set_num_threads(1)  # a process with more threads may not fork

CHILDREN = multiprocessing.get_context("forkserver")
"""Processes forked from one that has imported the heavy packages, which takes seconds."""
HEAVY = "torch sklearn.datasets scipy.stats hydra matplotlib.backends.backend_pdf"
OURS = "journey.__main__ journey.diffusion.autoencoder journey.diffusion.train journey.report.write"
CHILDREN.set_forkserver_preload([*HEAVY.split(), *OURS.split()])


def command(directory: Path, *words: str) -> subprocess.CompletedProcess:
    """Run the command, or a user's script (*.py), in a directory.

    tests/test_smoke.py and tests/test_readme.py run them as users do.
    """
    with tempfile.TemporaryDirectory() as scratch:
        output = [Path(scratch) / name for name in ("stdout", "stderr")]
        arguments = (directory, words, output, dict(os.environ))
        process = CHILDREN.Process(target=_run_command, args=arguments)
        process.start()
        process.join(1800)
        assert process.exitcode is not None, words
        texts = [path.read_text() for path in output]
        return subprocess.CompletedProcess(words, process.exitcode, *texts)


def _run_command(
    directory: Path, words: tuple[str, ...], output: list[Path], environment: dict[str, str]
) -> None:
    for descriptor, path in enumerate(output, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda _: fork  # workers need not import everything again
    if words[0].endswith(".py"):
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")
    else:
        sys.argv = ["journey", *words]
        entry.main()
