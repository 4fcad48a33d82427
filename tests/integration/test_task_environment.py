"""What tasks of each kind really see, printed by themselves: the table of tests/unit/test_environment_table.py."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nodeagent.agent.daemon import run_agent
from nodeagent.agent.testing import ScriptedService, agent_settings, task
from nodeagent.model.protocol import Assignment, AttemptKind
from tests.integration.command_line import job_text, kill_processes_of, nodeagent, shell
from tests.unit.test_environment_table import TABLE

OF_THE_SHIM = {"NODEAGENT_ATTEMPT", "NODEAGENT_BOUNDARY"}
"""The marks by which a sweep finds a process again; no settings of the agent, and no path."""


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    """A scripted service."""
    async with ScriptedService() as running:
        yield running


def assignment(kind: AttemptKind) -> Assignment:
    """A task of a job that has a preparation, or a start task, that prints its environment and where it is."""
    made = task(
        kind.value,
        "/bin/sh -c '/usr/bin/env -0; pwd >&2'",
        kind=kind,
        gate=None if kind in (AttemptKind.START, AttemptKind.JOB_PREPARATION) else AttemptKind.JOB_PREPARATION.value,
        environment={"MINE": "${AZ_BATCH_NODE_ID}", "AZ_BATCH_POOL_ID": "mine"},
    )
    return made.model_copy(update={"job_id": "", "task_id": ""}) if kind is AttemptKind.START else made


async def test_every_kind_sees_its_variables_and_nothing_else(service: ScriptedService, tmp_path: Path) -> None:
    """Names by the table, the working directory is `wd`, custom settings are there, and the agent's own are not."""
    root = tmp_path / "root"
    stop = asyncio.Event()
    os.environ["NODEAGENT_TEST_LEAK"] = "1"
    agent = asyncio.create_task(run_agent(agent_settings(tmp_path, service.url), stop))
    try:
        service.send(*(assignment(kind) for kind in AttemptKind))
        directories = {kind: (await service.terminal(kind.value)).task_root_directory for kind in AttemptKind}
    finally:
        del os.environ["NODEAGENT_TEST_LEAK"]
        stop.set()
        assert await agent == 0

    for kind, directory in directories.items():
        assert directory is not None
        lines = (root / directory / "stdout.txt").read_text().split("\0")[:-1]
        seen = dict(line.split("=", 1) for line in lines)
        # PWD and what else a shell adds is the shell's, which the command itself began
        expected = {name for name, (kinds, _) in TABLE.items() if kind in kinds} | OF_THE_SHIM | {"MINE"}
        assert seen.keys() - {"PWD", "OLDPWD", "SHLVL", "_"} == expected, kind
        assert (seen["MINE"], seen["AZ_BATCH_POOL_ID"]) == ("node-1", "local")
        assert (root / directory / "stderr.txt").read_text() == f"{root}/{directory}/wd\n"
        assert seen["AZ_BATCH_TASK_WORKING_DIR"] == f"{root}/{directory}/wd"
        assert str(tmp_path / "state") not in "".join(lines)


@pytest.mark.parametrize("waits", [True, False])
async def test_every_task_of_a_prepared_job_is_told_where_it_was_prepared(tmp_path: Path, *, waits: bool) -> None:
    """Through the service: the first task, one that comes when the preparation is long over, and the release task."""
    told = "echo $AZ_BATCH_JOB_PREP_DIR $AZ_BATCH_JOB_PREP_WORKING_DIR; pwd"
    body = job_text(
        "prepared",
        [("first", told), ("second", told)],
        jobPreparationTask={"commandLine": shell(told), "waitForSuccess": waits},
        jobReleaseTask={"commandLine": shell(told)},
    )
    (tmp_path / "job.json").write_text(json.dumps(body))
    folder = tmp_path / "state"
    try:
        status, _, err = await nodeagent("run", tmp_path / "job.json", "--slots=1", f"--state-dir={folder}")
    finally:
        kill_processes_of(tmp_path)
    assert status == 0, err
    job = folder / "nodes/node-1/root/workitems/prepared/job-1"
    where = f"{job}/jobpreparation {job}/jobpreparation/wd"
    for name in ("first", "second", "jobrelease"):
        assert (job / name / "stdout.txt").read_text() == f"{where}\n{job}/{name}/wd\n"
    assert (job / "jobpreparation" / "stdout.txt").read_text() == f"\n{job}/jobpreparation/wd\n"
