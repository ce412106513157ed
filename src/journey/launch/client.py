"""Between the job queue and Slurm.

The client can be killed at any moment: the same command goes on.

The store says which artifacts exist, Slurm which tasks are alive, and the submissions what each
task computes.
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

SLOWEST = 1e9  # multiply-adds per second that any machine reaches


@dataclass(frozen=True)
class TaskJobs:
    """The jobs of one array task; a full group does not wait for more."""

    keys: tuple[str, ...]
    full: bool


def group_jobs(seconds: dict[str, float], enough: float) -> list[TaskJobs]:
    """Return the jobs, in their order, in tasks of `enough` seconds; a long job has its own task.

    >>> [group.keys for group in group_jobs({"a": 4.0, "b": 4.0, "c": 20.0, "d": 4.0}, enough=8.0)]
    [('a', 'b'), ('c',), ('d',)]

    Args:
        seconds: Expected seconds of each job, by cache key.
        enough: Expected seconds that are worth a task.

    Returns:
        The groups. Only the last one may be smaller than `enough`.
    """
    groups: list[TaskJobs] = []
    short: list[str] = []
    total = 0.0
    for key, expected in seconds.items():
        if expected >= enough:
            groups.append(TaskJobs((key,), full=True))
            continue
        short.append(key)
        total += expected
        if total >= enough:
            groups.append(TaskJobs(tuple(short), full=True))
            short, total = [], 0.0
    if short:
        groups.append(TaskJobs(tuple(short), full=False))
    return groups


class Client:
    """Lets every job of a queue be computed by some array task, and by one only."""

    def __init__(
        self,
        queue: JobQueue,
        workspace: Workspace,
        allocation: Allocation,
        sbatch: dict[str, object],
        retries: int,
        pack_seconds: float,
        gather_seconds: float,
    ) -> None:
        """Prepare to submit.

        Args:
            queue: The jobs.
            workspace: Whose store is on a file system that the nodes share.
            allocation: The resources of each array task.
            sbatch: Settings of every submission, as `cluster.submit` takes them.
            retries: How often a failed job is retried.
            pack_seconds: Jobs expected to take longer have a task to themselves.
            gather_seconds: How long shorter jobs wait for others while any task is alive.
        """
        self._queue = queue
        self._workspace = workspace
        self._allocation = allocation
        self._sbatch = sbatch
        self._retries = retries
        self._pack_seconds = pack_seconds
        self._gather_seconds = gather_seconds
        self._root: Path = workspace.store.root
        self._tasks: dict[ArrayTaskID, set[str]] = {}  # alive tasks and their jobs
        self._over_before: set[ArrayTaskID] = set()  # tasks that were over at the last poll
        self._ready_since: dict[str, float] = {}
        self._costs = defaultdict(list, recorded_costs(workspace.store))
        self._most_in_array = cluster.most_in_array()

    def poll(self) -> list[Spec]:
        """Return the specs finished since the last poll of store and Slurm; submit ready jobs."""
        with exclusive(self._root):
            states = cluster.task_states()  # before the store, which then has all of ended tasks
            finished = self._find_finished()
            if states is not None:  # else Slurm does not answer, and nothing is done
                self._adopt(states)
                self._conclude(states)
                self._submit()
        return finished

    def _find_finished(self) -> list[Spec]:
        """Return the specs whose artifacts the store has by now, whoever computed them."""
        queue = self._queue
        candidates = [*queue.ready, *queue.running]
        existing = set()
        for folder in {key.split("/")[0] for key in candidates}:
            # Listed, since network file systems remember for a while that a single name is missing.
            if (self._root / folder).is_dir():
                existing |= {f"{folder}/{name}" for name in os.listdir(self._root / folder)}
        finished = []
        for key in existing.intersection(candidates):
            spec = queue.specs[key]
            artifact = self._workspace.store.find(spec)
            if artifact is None:
                continue
            seconds = artifact.manifest["seconds"]
            if key not in queue.running:
                queue.start(key)
            queue.finish(key, seconds)
            self._costs[spec.stage].append(StageCost(max(spec.work, 1.0), seconds))
            finished.append(spec)
        return finished

    def _adopt(self, states: dict[ArrayTaskID, str]) -> None:
        """Find tasks that another client submitted, and the jobs that are still queued."""
        queue = self._queue
        submissions: dict[str, list[list[str]]] = {}
        for task, state in states.items():
            if state in cluster.OVER:
                continue
            if task not in self._tasks:
                tasks = submissions.setdefault(task.token, submitted_tasks(self._root, task.token))
                keys = set(tasks[task.index]) if task.index < len(tasks) else set()
                if not keys.intersection(queue.ready):
                    continue
                self._tasks[task] = {queue.start(key) for key in keys.intersection(queue.ready)}
            keys = self._tasks[task] & queue.running.keys()
            queue.queued -= keys
            queue.queued |= keys - read_job_state(state_path(self._root, task)).running.keys()

    def _conclude(self, states: dict[ArrayTaskID, str]) -> None:
        """Retry or fail the unfinished jobs of tasks that were over at two polls.

        A requeued task may seem over once."""
        over = {task for task in self._tasks if states.get(task, "COMPLETED") in cluster.OVER}
        for task in over & self._over_before:
            cause = states.get(task) or cluster.end_of(task, self._root / FOLDER / task.token)
            state = read_job_state(state_path(self._root, task))
            for key in self._tasks.pop(task) & self._queue.running.keys():
                self._retry_or_fail(key, task, cause, state)
        self._over_before = over - self._over_before

    def _retry_or_fail(self, key: str, task: ArrayTaskID, cause: str, state: JobState) -> None:
        """Retry a job, `retries` times unless it progressed, never began, or was preempted."""
        queue, error = self._queue, state.failed.get(key)
        if error is None:
            progressed = state.running.get(key, "") != resume_hash(self._root, key)
            not_begun = state.begun and key not in state.running
            if progressed or not_begun or cause in cluster.TAKEN:
                queue.attempts[key] -= 1
            reason = cause or "unknown to the cluster"
            error = f"array task {task} ended ({reason}) before the artifact was computed"
            log = cluster.error_log(task, self._root)
            text = log.read_text(errors="replace") if log is not None else ""
            error += write_log(self._root, key, f"{text.rstrip()}\n{error}\n")
        if queue.attempts[key] <= self._retries:
            queue.retry(key)
        else:
            queue.fail(key, error)

    def _submit(self) -> None:
        """Submit ready jobs, short ones together, unless more may soon join the task.

        Raises:
            JobsFailedError: Slurm refuses the first submission.
        """
        now, ready = time.monotonic(), self._queue.ready
        self._ready_since = {key: self._ready_since.get(key, now) for key in ready}
        expected_seconds = {}
        for key in ready:
            spec = self._queue.specs[key]
            estimate = estimate_cost(spec, self._costs[spec.stage], None).seconds
            expected_seconds[key] = spec.work / SLOWEST if estimate is None else estimate
        due = []
        for group in group_jobs(
            expected_seconds, self._pack_seconds * self._allocation.num_workers
        ):
            waited = now - min(self._ready_since[key] for key in group.keys)
            if group.full or not self._tasks or waited >= self._gather_seconds:
                due.append(group)
        for first in range(0, len(due), self._most_in_array):
            error = self._submit_array(due[first : first + self._most_in_array])
            if error is not None and not self._tasks:
                raise JobsFailedError(f"nothing can be submitted: {error}")
            if error is not None:  # such as too many jobs at once: retried at the next poll
                return

    def _submit_array(self, groups: Sequence[TaskJobs]) -> str | None:
        """Return None, or the error, after submitting one array."""
        token = record_submission(self._root, [group.keys for group in groups])
        array_tasks = {}
        for index, group in enumerate(groups):
            task = ArrayTaskID(token, index)
            specs = tuple(self._queue.specs[key] for key in group.keys)
            path = state_path(self._root, task)
            array_tasks[task] = ArrayTask(specs, self._workspace, self._allocation, path)
        error = cluster.submit(token, list(array_tasks.values()), self._sbatch, self._root)
        if error is not None:
            shutil.rmtree(self._root / FOLDER / token)
            return error
        for task, group in zip(array_tasks, groups, strict=True):
            self._tasks[task] = {self._queue.start(key) for key in group.keys}
            self._queue.queued |= self._tasks[task]
        return None
