"""The job file of `nodeagent run`: the Batch REST body of a job with `tasks` beside it, as JSON or YAML.

Every complaint names file, line, column, the property and what would be right.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import ValidationError

from nodeagent.local.complaints import explain
from nodeagent.local.text_marks import Location, Marks, loader
from nodeagent.model.base import BatchModel
from nodeagent.model.job import JobCreate
from nodeagent.model.task import TaskCreate
from nodeagent.model.times import utc_now
from nodeagent.model.values import EnvironmentSetting
from nodeagent.rules.exit_conditions import misplaced_action
from nodeagent.rules.file_properties import job_file_faults, task_file_faults
from nodeagent.rules.sas import job_warnings, task_warnings
from nodeagent.rules.supported import unsupported_job, unsupported_task

JOB_DIRECTORY_VARIABLE = "NODEAGENT_JOB_DIR"
"""Tells every task of a job that `nodeagent run` submits where the job file lies."""

M = TypeVar("M", bound=BatchModel)

MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a job file; line and column count from 1, 0 where they are not known."""

    path: Path
    line: int
    column: int
    property: str
    message: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}:{self.column}" if self.line else str(self.path)
        return f"{where}: {self.property}: {self.message}" if self.property else f"{where}: {self.message}"


class JobFileError(ValueError):
    """A job file that cannot be run; `problems` says all that is wrong with it, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.line, problem.column)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True, slots=True)
class JobFile:
    """A job and its tasks, valid and ready to be sent; `warnings` are what `loose` let pass."""

    path: Path
    job: JobCreate
    tasks: tuple[TaskCreate, ...]
    warnings: tuple[str, ...] = ()

    @property
    def pool_id(self) -> str:
        """The pool that the job names."""
        return self.job.pool_info.pool_id or ""

    def with_job_directory(self) -> "JobFile":
        """Return the same with `NODEAGENT_JOB_DIR` among the job's common settings, unless the file sets it."""
        settings = self.job.common_environment_settings or ()
        if any(setting.name == JOB_DIRECTORY_VARIABLE for setting in settings):
            return self
        here = EnvironmentSetting(name=JOB_DIRECTORY_VARIABLE, value=str(self.path.resolve().parent))
        job = self.job.model_copy(update={"common_environment_settings": (here, *settings)})
        return JobFile(self.path, job, self.tasks, self.warnings)


def load(
    path: Path, *, pool_id: str, now: datetime | None = None, loose: bool = False, auto_storage: bool = False
) -> JobFile:
    """Read a job file; a job without `poolInfo` goes to `pool_id`.

    `now` is the time that the SAS of its URLs are compared with (None: the present); what will not hold is a
    warning. With `loose`, properties that this version does not support are warnings instead of errors.
    `auto_storage` tells whether containers may be named without a URL. Raises `JobFileError` with every problem that
    was found, `OSError` if the file cannot be read.
    """
    return _Reader(path, now or utc_now(), loose=loose, auto_storage=auto_storage).read(pool_id)


class _Reader:
    """One reading of one file: gathers problems, and finds places only when there is one to tell of."""

    def __init__(self, path: Path, now: datetime, *, loose: bool, auto_storage: bool) -> None:
        self._path = path
        self._now = now
        self._loose = loose
        self._auto_storage = auto_storage
        self._problems: list[Problem] = []
        self._warnings: list[str] = []
        self._text = ""
        self._marks: Marks | None = None

    def read(self, pool_id: str) -> JobFile:
        body = self._document()
        tasks_body = body.pop("tasks", None)
        if body.get("poolInfo") is None and body.get("pool_info") is None:
            body["poolInfo"] = {"poolId": pool_id}
        job = self._validated(JobCreate, body, ())
        tasks = self._tasks(tasks_body, needed=body.get("jobManagerTask") is None)
        if job is not None:
            self._check_ids(job, tasks)
            self._check_supported(job, tasks)
            self._check_conditions(job, tasks)
            self._check_files(job, tasks)
        if self._problems or job is None:
            raise JobFileError(self._problems)
        self._foresee(job, tasks)
        return JobFile(self._path, job, tuple(task for _, task in tasks), tuple(self._warnings))

    def _document(self) -> dict[str, Any]:
        """Return the file's content as a fresh dict. Raises JobFileError for what is no JSON or YAML mapping."""
        data = self._path.read_bytes()
        if len(data) > MAX_BYTES:
            self._fail(f"is {len(data)} bytes long; a job file may have {MAX_BYTES}")
        try:
            self._text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            self._fail(f"is not UTF-8 text: byte 0x{data[error.start]:02x} on this line", line=line, column=1)
        value = self._json() if self._is_json() else self._yaml()
        for location, key in self._duplicates():
            self._problem(location, f"'{key}' is given twice; keep one")
        if not isinstance(value, dict):
            self._fail("must hold one mapping: the properties of a job, and 'tasks'")
        return dict(value)

    def _is_json(self) -> bool:
        return self._path.suffix.lower() == ".json" or (
            self._path.suffix.lower() not in (".yaml", ".yml") and self._text.lstrip()[:1] == "{"
        )

    def _json(self) -> object:
        try:
            return json.loads(self._text, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            self._fail(f"is not JSON: {error.msg}", line=error.lineno, column=error.colno)
        except (ValueError, RecursionError) as error:
            self._fail(f"is not JSON: {error}")

    def _yaml(self) -> object:
        try:
            return yaml.load(self._text, Loader=loader())  # noqa: S506 - the safe loader, in C where there is one
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
            told = " ".join(part for part in (error.context, error.problem) if part)
            self._fail(f"is not YAML: {told}", line=line, column=column)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            self._fail(f"is not YAML: {str(error).splitlines()[0]}")

    def _duplicates(self) -> list[tuple[Location, str]]:
        return self._places().duplicates()

    def _tasks(self, body: object, *, needed: bool) -> list[tuple[int, TaskCreate]]:
        """Return the valid ones of `tasks`, each with its index in the file."""
        if body is None or body == []:
            if needed:
                self._problem(("tasks",), "must be a list of at least one task beside the job's properties")
            return []
        if not isinstance(body, list):
            self._problem(("tasks",), f"must be a list of tasks, not {_kind(body)}")
            return []
        validated = ((index, self._validated(TaskCreate, item, ("tasks", index))) for index, item in enumerate(body))
        return [(index, task) for index, task in validated if task is not None]

    def _validated(self, model: type[M], body: object, prefix: Location) -> M | None:
        try:
            return model.model_validate(body)
        except ValidationError as error:
            for location, message in explain(model, error):
                self._problem((*prefix, *location), message)
            return None

    def _check_ids(self, job: JobCreate, tasks: list[tuple[int, TaskCreate]]) -> None:
        special = {
            "jobPreparationTask": job.job_preparation_task,
            "jobReleaseTask": job.job_release_task,
            "jobManagerTask": job.job_manager_task,
        }
        taken = {task.id.lower(): name for name, task in special.items() if task is not None}
        for index, task in tasks:
            owner = taken.setdefault(task.id.lower(), f"tasks[{index}]")
            if owner != f"tasks[{index}]":
                self._problem(("tasks", index, "id"), f"'{task.id}' is already the id of {owner}; ids ignore case")

    def _check_supported(self, job: JobCreate, tasks: list[tuple[int, TaskCreate]]) -> None:
        refused = [_steps(path) for path in unsupported_job(job)]
        refused += [("tasks", index, *_steps(path)) for index, task in tasks for path in unsupported_task(task)]
        for location in refused:
            if self._loose:
                self._warnings.append(str(self._located(location, "is not supported yet and ignored (--loose)")))
            else:
                self._problem(location, "is not supported by this version; remove it, or ignore it with --loose")

    def _check_conditions(self, job: JobCreate, tasks: list[tuple[int, TaskCreate]]) -> None:
        """Dependencies and actions need a job that takes them (spec/rest.md §7.3)."""
        for index, task in tasks:
            if task.depends_on is not None and not job.uses_task_dependencies:
                self._problem(("tasks", index, "dependsOn"), "needs usesTaskDependencies: true of the job")
            misplaced = misplaced_action(
                task.exit_conditions,
                on_task_failure=job.on_task_failure,
                uses_task_dependencies=job.uses_task_dependencies,
            )
            if misplaced is not None:
                self._problem(("tasks", index, *_steps(misplaced.path)), misplaced.reason)

    def _check_files(self, job: JobCreate, tasks: list[tuple[int, TaskCreate]]) -> None:
        faults = [(_steps(fault.path), fault.reason) for fault in job_file_faults(job, auto_storage=self._auto_storage)]
        for index, task in tasks:
            found = task_file_faults(task, auto_storage=self._auto_storage)
            faults += [(("tasks", index, *_steps(fault.path)), fault.reason) for fault in found]
        for location, reason in faults:
            self._problem(location, reason or "is required and missing")

    def _foresee(self, job: JobCreate, tasks: list[tuple[int, TaskCreate]]) -> None:
        """Warn of each SAS that will not open what its task needs, or not long enough."""
        found = [(_steps(item.property), item.message) for item in job_warnings(job, self._now)]
        for index, task in tasks:
            told = task_warnings(task, self._now)
            found += [(("tasks", index, *_steps(item.property)), item.message) for item in told]
        self._warnings += [str(self._located(location, message)) for location, message in found]

    def _places(self) -> Marks:
        if self._marks is None:
            self._marks = Marks(self._text)
        return self._marks

    def _located(self, location: Location, message: str) -> Problem:
        line, column = self._places().find(location)
        return Problem(self._path, line, column, json_path(location), message)

    def _problem(self, location: Location, message: str) -> None:
        self._problems.append(self._located(location, message))

    def _fail(self, message: str, line: int = 0, column: int = 0) -> NoReturn:
        raise JobFileError([Problem(self._path, line, column, "", message)])


def json_path(location: Location) -> str:
    """Return e.g. `tasks[3].constraints.maxTaskRetryCount`."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _steps(path: str) -> Location:
    return tuple(int(step) if step.isdigit() else step for step in re.findall(r"[^.\[\]]+", path))


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    return {str: "text", bool: "true or false", int: "a number", float: "a number"}.get(type(value), "something else")


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON value")
