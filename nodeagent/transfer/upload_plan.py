"""What is to be uploaded for one execution: planned once, remembered durably, gone on with after any kill.

The plan is stored before the first byte goes out, and a file that is begun with what its content is known by
(inode, size, time). So a second life uploads nothing twice with another content (invariant I10).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from nodeagent.model.files import OutputFile
from nodeagent.rules.file_patterns import FilePatternError, file_pattern
from nodeagent.rules.upload_failures import UploadProblem
from nodeagent.rules.uploads import LONGEST_BLOB_NAME, UploadHeaderError, applies, blob_headers, blob_name
from nodeagent.rules.urls import shown
from nodeagent.transfer.base import Owner
from nodeagent.transfer.file_walk import FoundFile, find
from nodeagent.transfer.run_as import RunAs


@dataclass(frozen=True, slots=True)
class Uploads:
    """What is to be uploaded for one execution."""

    execution_id: str
    output_files: tuple[OutputFile, ...]
    exit_code: int
    root: Path
    """AZ_BATCH_TASK_DIR."""
    wd: Path
    environment: Mapping[str, str]
    """Of the task, for `$VAR` in patterns."""
    run_as: RunAs | None
    """Files are opened with this user's permissions; None: the agent's."""
    log_owner: Owner | None
    """Whose fileuploadout.txt and fileuploaderr.txt are."""


class FileState(StrEnum):
    """How far one file is."""

    PLANNED = "planned"
    BEGUN = "begun"
    """Bytes of it may have gone out."""
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a plan, or one rule that can't be followed."""

    number: int
    """From 1; in the order of rules and paths."""
    rule: int
    """Index of the rule in `outputFiles`."""
    path: str
    """Absolute path of the file; the pattern, if its rule can't be followed. Always valid Unicode."""
    blob: str
    """Name in the rule's container."""
    identity: str | None
    """What its content is known by; of the open file, once it is begun."""
    state: FileState = FileState.PLANNED
    problem: UploadProblem | None = None
    """Why it failed."""


class Ledger(Protocol):
    """The durable memory of one execution's uploads."""

    async def planned(self) -> tuple[PlannedFile, ...] | None:
        """Return the plan as far as it is done, or None if there is none yet."""

    async def plan(self, files: Sequence[PlannedFile]) -> None:
        """Store a plan, which may be empty. It is stored when this returns."""

    async def begun(self, number: int, identity: str) -> None:
        """Store that a file with this content is sent from now on. It is stored when this returns."""

    def finished(self, number: int, problem: UploadProblem | None) -> None:
        """Store that a file is done, or why it failed; soon, see `settled`."""

    async def settled(self) -> None:
        """Return when all that is finished is stored."""


@dataclass(slots=True)
class Plan:
    """A plan, and what is to be told of how it came about."""

    files: list[PlannedFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """For fileuploadout.txt."""
    complaints: list[str] = field(default_factory=list)
    """For fileuploaderr.txt."""


def rules_to_follow(uploads: Uploads) -> list[int]:
    """Return which rules apply after this exit code."""
    return [
        number
        for number, rule in enumerate(uploads.output_files)
        if applies(rule.upload_options.upload_condition, uploads.exit_code)
    ]


def make_plan(uploads: Uploads) -> Plan:
    """Look for the files of all rules that apply, with the permissions of this thread."""
    plan = Plan()
    for number in rules_to_follow(uploads):
        _add_rule(plan, uploads, number)
    _drop_overwritten(plan, uploads)
    plan.files = [replace(file, number=number) for number, file in enumerate(plan.files, start=1)]
    return plan


def _add_rule(plan: Plan, uploads: Uploads, number: int) -> None:
    rule = uploads.output_files[number]
    container = rule.destination.container
    try:
        pattern = file_pattern(rule.file_pattern, uploads.environment)
        blob_headers(container.upload_headers or (), "")
    except (FilePatternError, UploadHeaderError) as error:
        plan.files.append(_failed(number, readable(rule.file_pattern), "", str(error)))
        return
    findings = find(pattern, str(uploads.wd))
    for file in findings.files:
        plan.files.append(_planned(number, file, blob_name(container.path, pattern, file.relative)))
    for path, why in findings.refused:
        plan.files.append(_failed(number, readable(path), "", why))
    plan.complaints += [f"{readable(path)}: not uploaded: it is {kind}" for path, kind in findings.skipped]
    if not findings.files:
        plan.notes.append(f"{readable(pattern.text)}: matches no file")


def _planned(rule: int, file: FoundFile, blob: str) -> PlannedFile:
    path = readable(file.path)
    if path != file.path or readable(blob) != blob:
        return _failed(
            rule, path, readable(blob), "the name has bytes or control characters that no blob's name can have"
        )
    if len(blob) > LONGEST_BLOB_NAME:
        return _failed(
            rule, path, blob, f"the blob's name would have {len(blob)} characters; at most {LONGEST_BLOB_NAME}"
        )
    return PlannedFile(0, rule, path, blob, file.identity)


def _failed(rule: int, path: str, blob: str, why: str) -> PlannedFile:
    return PlannedFile(0, rule, path, blob, None, FileState.FAILED, UploadProblem(message=why))


def _drop_overwritten(plan: Plan, uploads: Uploads) -> None:
    """Of files that go to the same blob only the last is uploaded, as if one had been uploaded after the other."""
    last: dict[tuple[str, str], PlannedFile] = {}
    for file in plan.files:
        if file.state is FileState.PLANNED:
            last[_blob_of(file, uploads)] = file
    kept: list[PlannedFile] = []
    for file in plan.files:
        if file.state is FileState.PLANNED and (winner := last[_blob_of(file, uploads)]) is not file:
            plan.complaints.append(f"{file.path}: not uploaded: {winner.path} goes to the same blob {file.blob}")
        else:
            kept.append(file)
    plan.files = kept


def _blob_of(file: PlannedFile, uploads: Uploads) -> tuple[str, str]:
    return shown(uploads.output_files[file.rule].destination.container.container_url), file.blob


def readable(name: str) -> str:
    """Return a name with bytes that are no UTF-8, and control characters, written as escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(
        character if character.isprintable() or ord(character) > 0x9F else _escaped(character) for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
