"""Many short artifacts to an array task, many tasks to an array, and no array larger than the cluster takes.

What stands between an agenda and a cluster. It can be killed at any moment: whoever runs the same command goes on.

What is made is told by the store, what is still there by the cluster, what each task was to make by the ledger.
"""

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from journey.engine.costs import StageCost, estimate_cost, recorded_costs
from journey.engine.spec import Spec
from journey.engine.workspace import Workspace
from journey.launch import cluster
from journey.launch.array_task import ArrayTask
from journey.launch.jobs import JobQueue, JobsFailedError, write_log
from journey.launch.machine import Allocation
from journey.launch.submissions import (
    FOLDER,
    ArrayTaskID,
    JobState,
    exclusive,
    read_job_state,
    record_submission,
    resume_hash,
    state_path,
    submitted_tasks,
)


@dataclass(frozen=True)
class TaskJobs:
    """What one array task makes. full: whether it is worth a task by itself, so that it need not wait for more."""

    keys: tuple[str, ...]
    full: bool


def group_jobs(seconds: dict[str, float], enough: float) -> list[TaskJobs]:
    """Artifacts in the order they come in, together until their expected seconds are enough; a long one by itself.

    seconds: of each artifact, by its address

    >>> packed({"a": 4.0, "b": 4.0, "c": 20.0, "d": 4.0}, enough=8.0)
    [Pack(keys=('a', 'b'), full=True), Pack(keys=('c',), full=True), Pack(keys=('d',), full=False)]
    """
    packs: list[TaskJobs] = []
    short: list[str] = []
    total = 0.0
    for key, expected in seconds.items():
        if expected >= enough:
            packs.append(TaskJobs((key,), full=True))
            continue
        short.append(key)
        total += expected
        if total >= enough:
            packs.append(TaskJobs(tuple(short), full=True))
            short, total = [], 0.0
    return [*packs, TaskJobs(tuple(short), full=False)] if short else packs


def split_arrays(tasks: Sequence[TaskJobs], most: int) -> list[list[TaskJobs]]:
    """Tasks in arrays of at most so many.

    >>> [len(array) for array in arrays([Pack(("a",), True)] * 5, most=2)]
    [2, 2, 1]
    """
    return [list(tasks[first : first + most]) for first in range(0, len(tasks), most)]


SLOWEST = 1e9  # multiply-adds a second, which any machine does


class Client:
    """Sees to it that all of an agenda that can be made is made by some task, and by one only.

    sbatch: settings of every submission, as `cluster.submit` has them. retries: how often what fails is tried again.
    pack_seconds: from how many expected seconds on artifacts have a task to themselves; gather_seconds: how long what takes less
    waits for others, while there is anything else to wait for.
    """

    def __init__(
        self,
        agenda: JobQueue,
        workspace: Workspace,
        allocation: Allocation,
        sbatch: dict[str, object],
        retries: int,
        pack_seconds: float,
        gather_seconds: float,
    ) -> None:
        self._agenda = agenda
        self._workspace = workspace
        self._allocation = allocation
        self._sbatch = sbatch
        self._retries = retries
        self._pack_seconds = pack_seconds
        self._gather_seconds = gather_seconds
        self._root: Path = workspace.store.root
        self._tasks: dict[
            ArrayTaskID, set[str]
        ] = {}  # that are queued or run: what they are to make
        self._gone: set[ArrayTaskID] = set()  # that were over at the last look
        self._ready_since: dict[str, float] = {}
        self._known = defaultdict(list, recorded_costs(workspace.store))
        self._most_in_array = cluster.most_in_array()

    def look(self) -> list[Spec]:
        """Look once at the store and the cluster and submit what is lacking; the specs of what is there since the last time."""
        with exclusive(self._root):
            states = (
                cluster.look()
            )  # before the store: what a task that is over has made is there then
            made = self._find()
            if states is not None:  # else nothing is known, and nothing done
                self._adopt(states)
                self._conclude(states)
                self._submit()
        return made

    # ------------------------------------------------------------------------------------------ what is there

    def _find(self) -> list[Spec]:
        """Enter in the agenda what the store has, whoever made it."""
        agenda, made = self._agenda, []
        candidates = [*agenda.ready, *agenda.running]
        folders = {key.split("/")[0] for key in candidates}
        there = {f"{folder}/{name}" for folder in folders for name in _names(self._root / folder)}
        for key in there.intersection(candidates):
            spec = agenda.specs[key]
            took = self._workspace.store.find(spec).manifest
            if key not in agenda.running:
                agenda.take(key)
            agenda.finish(key, took["seconds"])
            self._known[spec.stage].append(
                StageCost(max(spec.work, 1.0), took["seconds"], took["bytes"])
            )
            made.append(spec)
        return made

    def _adopt(self, states: dict[ArrayTaskID, str]) -> None:
        """Find tasks that another client submitted, and what of all tasks is queued."""
        agenda = self._agenda
        submissions: dict[str, list[list[str]]] = {}
        for task, state in states.items():
            if state in cluster.OVER:
                continue
            if task not in self._tasks:
                tasks = submissions.setdefault(task.token, submitted_tasks(self._root, task.token))
                ours = (
                    set(tasks[task.index]).intersection(agenda.ready)
                    if task.index < len(tasks)
                    else set()
                )
                if not ours:
                    continue
                self._tasks[task] = {agenda.take(key) for key in ours}
            keys = self._tasks[task] & agenda.running.keys()
            agenda.queued -= keys
            agenda.queued |= keys - read_job_state(state_path(self._root, task)).running.keys()

    # -------------------------------------------------------------------------------------------- what is over

    def _conclude(self, states: dict[ArrayTaskID, str]) -> None:
        """Give back to the agenda what tasks that are over did not make.

        Over at two looks, since a task that is queued again may seem so for a moment.
        """
        over = {task for task in self._tasks if states.get(task, "COMPLETED") in cluster.OVER}
        for task in over & self._gone:
            folder = self._root / FOLDER / task.token
            cause = states.get(task) or cluster.end_of(task, folder)
            journal = read_job_state(state_path(self._root, task))
            for key in self._tasks.pop(task) & self._agenda.running.keys():
                self._give_up_or_back(key, task, cause, journal)
        self._gone = over - self._gone

    def _give_up_or_back(self, key: str, task: ArrayTaskID, cause: str, journal: JobState) -> None:
        """What was not made is tried again, `retries` times unless the fault was not its own or it got further."""
        agenda = self._agenda
        error = journal.failed.get(key)
        if error is None:
            further = journal.running.get(key, "") != resume_hash(self._root, key)
            never_its_turn = journal.begun and key not in journal.running
            if further or never_its_turn or cause in cluster.TAKEN:
                agenda.attempts[key] -= 1
            error = self._lost(key, task, cause)
        if agenda.attempts[key] <= self._retries:
            agenda.give_back(key)
        else:
            agenda.fail(key, error)

    def _lost(self, key: str, task: ArrayTaskID, cause: str) -> str:
        """Say, also in the artifact's log, that a task ended without a word about it."""
        said = cluster.error_log(task, self._root)
        text = said.read_text(errors="replace") if said is not None else ""
        what = f"array task {task} ended ({cause or 'unknown to the cluster'}) before it was made"
        return what + write_log(self._root, key, f"{text.rstrip()}\n{what}\n")

    # ------------------------------------------------------------------------------------------ what is lacking

    def _submit(self) -> None:
        """Submit what is ready, short artifacts together, unless there may soon be more for the same task."""
        now = time.monotonic()
        ready = self._agenda.ready
        self._ready_since = {key: self._ready_since.get(key, now) for key in ready}
        enough = self._pack_seconds * self._allocation.num_workers
        packs = group_jobs({key: self._expected(key) for key in ready}, enough)
        for array in split_arrays(
            [pack for pack in packs if self._goes_now(pack, now)], self._most_in_array
        ):
            error = self._submit_array(array)
            if error is not None and not self._tasks:
                raise JobsFailedError(f"nothing can be submitted: {error}")
            if error is not None:  # such as too many jobs at once: later
                return

    def _goes_now(self, pack: TaskJobs, now: float) -> bool:
        waited = now - min(self._ready_since[key] for key in pack.keys)
        return pack.full or not self._tasks or waited >= self._gather_seconds

    def _expected(self, key: str) -> float:
        """The seconds an artifact will take, as those did that were made; before there is any, more than it will."""
        spec = self._agenda.specs[key]
        expected = estimate_cost(spec, self._known[spec.stage], None)
        return spec.work / SLOWEST if expected.seconds is None else expected.seconds

    def _submit_array(self, array: Sequence[TaskJobs]) -> str | None:
        """What went wrong, if anything."""
        token = record_submission(self._root, [pack.keys for pack in array])
        tasks = [ArrayTaskID(token, index) for index in range(len(array))]
        error = cluster.submit(
            token,
            [self._bundle(*pair) for pair in zip(tasks, array, strict=True)],
            self._sbatch,
            self._root,
        )
        if error is not None:
            shutil.rmtree(self._root / FOLDER / token)
            return error
        for task, pack in zip(tasks, array, strict=True):
            self._tasks[task] = {self._agenda.take(key) for key in pack.keys}
            self._agenda.queued |= self._tasks[task]
        return None

    def _bundle(self, task: ArrayTaskID, pack: TaskJobs) -> ArrayTask:
        specs = tuple(self._agenda.specs[key] for key in pack.keys)
        return ArrayTask(specs, self._workspace, self._allocation, state_path(self._root, task))


def _names(folder: Path) -> list[str]:
    """What is in a folder, as it is now: network file systems remember for a while that a single name is not there."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
