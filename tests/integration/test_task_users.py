"""Whom tasks run as, on a real kernel: an agent that is root keeps them apart, one that is not says so once.

The folders lie outside of pytest's own, which nobody but root may enter.
"""

import asyncio
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import rmtree

import aiohttp
import pytest
from azure.batch import BatchClient, models
from azure.core.credentials import AzureNamedKeyCredential
from pydantic import SecretStr

from nodeagent.agent.daemon import run_agent
from nodeagent.agent.testing import ScriptedService, agent_settings, task
from nodeagent.model.enums import AutoUserScope, ElevationLevel
from nodeagent.model.failure import FailureInfo
from nodeagent.model.protocol import Assignment, AttemptKind, EndJobSession, NamedUser, Outcome, RemoveFiles
from nodeagent.model.values import AutoUserSpecification, UserIdentity
from nodeagent.service.app import Service
from nodeagent.service.settings import ServiceSettings
from tests.integration.batch_endpoint import KEY as ACCOUNT_KEY
from tests.integration.batch_endpoint import Sdk, completed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving tasks users of their own needs root")

FIRST, LAST = 60800, 60809
"""A range of the tests' own, so that an agent beside them keeps its uids."""

PLAIN_USER = 61999
PASSWORD = "password-of-a-named-user"

POOL = UserIdentity(auto_user=AutoUserSpecification())
TASK = UserIdentity(auto_user=AutoUserSpecification(scope=AutoUserScope.TASK))
ADMIN = UserIdentity(auto_user=AutoUserSpecification(elevation_level=ElevationLevel.ADMIN))


def as_user(assignment: Assignment, identity: UserIdentity, named: NamedUser | None = None) -> Assignment:
    """The assignment with another identity."""
    work = assignment.work.model_copy(update={"user_identity": identity, "named_user": named})
    return assignment.model_copy(update={"work": work})


def named(name: str, **more: object) -> tuple[UserIdentity, NamedUser]:
    """A named user of the pool, as identity and as the service tells it."""
    return UserIdentity(username=name), NamedUser.model_validate({"name": name} | more)


def shell(script: str) -> str:
    """A command line that runs a script without single quotes."""
    return f"/bin/sh -c '{script}'"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may pass."""
    path = Path(tempfile.mkdtemp(prefix="users-"))
    path.chmod(0o711)
    yield path
    rmtree(path)


class Node:
    """A registered agent, and where its things are."""

    def __init__(self, folder: Path, service: ScriptedService) -> None:
        self.service = service
        self.root = folder / "root"
        self.shared = self.root / "shared"
        self.state = folder / "state"

    def directory(self, task_id: str) -> Path:
        """A task's directory."""
        return self.root / "workitems/job/job-1" / task_id

    async def ended(self, assignment: Assignment) -> Outcome:
        """Have an assignment executed; how it ended."""
        self.service.send(assignment)
        report = await self.service.terminal(assignment.attempt_id)
        assert report.outcome is not None, report
        return report.outcome

    async def output(self, assignment: Assignment) -> str:
        """Have an assignment executed; its standard output. It must succeed."""
        outcome = await self.ended(assignment)
        assert outcome.exit_code == 0, outcome
        return (self.directory(assignment.task_id) / "stdout.txt").read_text().strip()


@asynccontextmanager
async def node_on(folder: Path, service: ScriptedService, **settings: object) -> AsyncIterator[Node]:
    """One life of an agent that gives tasks users of their own."""
    stop = asyncio.Event()
    given = {"accounts": "uids", "uid_range": (FIRST, LAST)} | settings
    agent = asyncio.create_task(run_agent(agent_settings(folder, service.url, **given), stop))
    await service.registered(len(service.registers) + 1)
    yield Node(folder, service)
    stop.set()
    assert await agent == 0


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    """A scripted service."""
    async with ScriptedService() as running:
        yield running


@pytest.fixture
async def node(service: ScriptedService, folder: Path) -> AsyncIterator[Node]:
    """A node whose agent is root."""
    async with node_on(folder, service) as running:
        yield running


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what another process does, and nothing announces."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0.01)
    assert condition(), what


WHO = shell("echo $(id -u) $(id -g) $(id -G) $USER $AZ_BATCH_TASK_USER $AZ_BATCH_TASK_USER_IDENTITY")


async def test_the_pool_user_is_one_uid_without_rights(node: Node) -> None:
    """Two tasks of the pool's auto user are the same user, with the name that Batch has for it."""
    expected = f"{FIRST} {FIRST} {FIRST} _azbatch _azbatch PoolNonAdmin"
    assert await node.output(task("a", WHO)) == expected
    assert await node.output(task("b", WHO)) == expected


async def test_an_administrator_is_root(node: Node) -> None:
    """Whichever scope: uid 0, and called so."""
    assert await node.output(as_user(task("a", WHO), ADMIN)) == "0 0 0 root root PoolAdmin"


async def test_a_task_user_is_a_uid_and_group_of_its_own(node: Node) -> None:
    """Each task another one, and never the pool's."""
    first = await node.output(as_user(task("a", WHO), TASK))
    second = await node.output(as_user(task("b", WHO), TASK))
    one, two = FIRST + 1, FIRST + 2
    assert first == f"{one} {one} {one} _azbatchtask_1 _azbatchtask_1 TaskNonAdmin"
    assert second == f"{two} {two} {two} _azbatchtask_2 _azbatchtask_2 TaskNonAdmin"


async def test_a_tasks_directories_and_files_are_its_users(node: Node) -> None:
    """Directory, working directory and output belong to the task's user and the common group, closed to others."""
    script = 'stat -c "%u %g %a" $AZ_BATCH_TASK_DIR . ; stat -c "%u %a" ../stdout.txt; touch mine'
    printed = await node.output(as_user(task("a", shell(script)), TASK))
    assert printed.split("\n") == [*[f"{FIRST + 1} {FIRST} 770"] * 2, f"{FIRST + 1} 644"]


async def test_tasks_in_task_scope_cannot_read_each_other(node: Node) -> None:
    """While both run, neither gets into the other's directory; nor into a pool user's; the pool user gets in."""
    secret = (
        "echo secret > secret; touch $AZ_BATCH_NODE_SHARED_DIR/{0};"
        " until [ -e $AZ_BATCH_NODE_SHARED_DIR/go ]; do sleep 0.05; done"
    )
    node.service.send(as_user(task("a", shell(secret.format("a"))), TASK), task("b", shell(secret.format("b"))))
    await until(lambda: (node.shared / "a").exists() and (node.shared / "b").exists(), "both run")
    service, owners = node.service, {"task": TASK, "pool": POOL}
    codes = {}
    # both slots of the node are taken in the eyes of a service; the agent executes what it is given
    for victim in ("task-a", "task-b"):
        for name, identity in owners.items():
            spy = f"cat {node.directory(victim)}/wd/secret; ls {node.directory(victim)}"
            service.send(as_user(task(f"{name}-{victim}", shell(f"{spy} || exit 9")), identity))
            report = await service.terminal(f"{name}-{victim}")
            assert report.outcome is not None
            codes[name, victim] = report.outcome.exit_code
    (node.shared / "go").touch()
    await service.terminal("a")
    await service.terminal("b")

    assert codes == {("task", "task-a"): 9, ("pool", "task-a"): 0, ("task", "task-b"): 9, ("pool", "task-b"): 0}


async def test_nothing_of_the_agent_is_reached(node: Node) -> None:
    """Neither the state directory nor a shim is readable or can be signalled, for whom is no administrator."""
    script = (
        f"ls {node.state} || ls {node.state}/attempts || cat {node.state}/agent.db"
        " || kill -0 $PPID || cat /proc/$PPID/environ || touch $AZ_BATCH_NODE_ROOT_DIR/workitems/x"
        " || touch $AZ_BATCH_NODE_ROOT_DIR/workitems/job/job-1/x || mv $AZ_BATCH_TASK_DIR $AZ_BATCH_TASK_DIR.x"
    )
    for number, identity in enumerate((POOL, TASK)):
        outcome = await node.ended(
            as_user(task(f"a{number}", shell(f"if {script}; then exit 0; fi; exit 9")), identity)
        )
        assert outcome.exit_code == 9, outcome


async def test_every_user_writes_into_the_shared_directory_and_removes_only_its_own(node: Node) -> None:
    """As /tmp: everybody's, with the sticky bit."""
    await node.output(as_user(task("a", shell("touch $AZ_BATCH_NODE_SHARED_DIR/of-a")), TASK))
    script = "touch $AZ_BATCH_NODE_SHARED_DIR/of-b && rm -f $AZ_BATCH_NODE_SHARED_DIR/of-a"
    assert (await node.ended(as_user(task("b", shell(script)), TASK))).exit_code == 1
    assert {path.name for path in node.shared.iterdir()} == {"of-a", "of-b"}


@pytest.mark.parametrize(
    ("own", "identity", "code"), [(POOL, POOL, 0), (POOL, TASK, 1), (TASK, POOL, 1), (ADMIN, POOL, 1)]
)
async def test_what_the_preparation_has_left_is_read_by_all_and_written_by_its_own_user(
    node: Node, own: UserIdentity, identity: UserIdentity, code: int
) -> None:
    """Whoever it ran as: its directory is open to all for reading, and to the same account for writing."""
    await node.output(as_user(task("p", shell("echo data > data"), kind=AttemptKind.JOB_PREPARATION), own))
    read = as_user(task("r", shell("cat $AZ_BATCH_JOB_PREP_WORKING_DIR/data"), gate="p"), identity)
    write = as_user(task("w", shell("touch $AZ_BATCH_JOB_PREP_WORKING_DIR/more"), gate="p"), identity)
    assert await node.output(read) == "data"
    assert (await node.ended(write)).exit_code == code


async def test_named_users_have_their_own_uid_or_the_one_they_prescribe(node: Node) -> None:
    """Without a uid one of the range, the same each time; with one, that and its group."""
    for attempt_id in ("a", "b"):
        printed = await node.output(as_user(task(attempt_id, WHO), *named("carol")))
        assert printed == f"{FIRST + 1} {FIRST + 1} {FIRST + 1} carol carol carol"
    prescribed = as_user(task("c", WHO), *named("dave", uid=70123, gid=70124))
    assert await node.output(prescribed) == "70123 70124 70124 dave dave dave"
    admin = as_user(task("d", WHO), *named("erin", elevationLevel="admin"))
    assert await node.output(admin) == "0 0 0 root root erin"


def message_of(failure: FailureInfo | None) -> str:
    """What a failure tells as its reason; it must be that of a command that could not be launched."""
    assert failure is not None
    assert (failure.code, failure.category) == ("CommandLaunchFailed", "usererror")
    return next(item.value for item in failure.details if item.name == "Message")


@pytest.mark.parametrize(
    ("user", "told"),
    [
        ((UserIdentity(username="nobody-knows"), None), "the pool has no user account 'nobody-knows'"),
        (named("daemon"), "the node has an account of that name"),
        (named("dave", uid=0, gid=0), "uid and gid 0 are root's"),
        (named("dave", uid=1, gid=1), "is that of the node's account"),
        (named("dave", uid=FIRST, gid=FIRST), "is of the node's own range"),
    ],
)
async def test_a_user_that_cannot_be_had_is_a_failure_before_the_start(
    node: Node, user: tuple[UserIdentity, NamedUser | None], told: str
) -> None:
    """CommandLaunchFailed with the reason, and no exit code."""
    outcome = await node.ended(as_user(task("a", "true"), *user))
    assert outcome.exit_code is None
    assert told in message_of(outcome.failure_info)


async def test_a_program_that_the_user_may_not_execute_is_told_with_the_user(node: Node) -> None:
    """EACCES names the account, and what may be wrong."""
    program = node.root / "volatile/program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    outcome = await node.ended(task("a", str(program)))
    assert "EACCES" in message_of(outcome.failure_info)
    assert outcome.failure_info is not None
    assert ("User", "_azbatch") in [(item.name, item.value) for item in outcome.failure_info.details]


async def test_the_directory_of_an_ended_task_is_closed_before_its_uid_is_anybody_elses(node: Node) -> None:
    """The range has nine uids for tasks: the tenth task gets the first one's uid, and not the first one's files."""
    await node.output(as_user(task("a0", shell("echo secret > secret; chmod 0644 secret")), TASK))
    found = (node.directory("task-a0")).stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o700)
    uids = [int(await node.output(as_user(task(f"b{number}", shell("id -u")), TASK))) for number in range(9)]
    assert uids == [*range(FIRST + 2, LAST + 1), FIRST + 1]
    spy = as_user(task("spy", shell(f"cat {node.directory('task-a0')}/wd/secret")), TASK)
    assert (await node.ended(spy)).exit_code == 1


async def test_the_uid_of_a_preparation_is_free_when_its_directory_has_gone(node: Node) -> None:
    """What it has left is used until then: nobody else may have its uid."""
    prepare = as_user(task("p", shell("id -u"), job_id="prepared", kind=AttemptKind.JOB_PREPARATION), TASK)
    assert (await node.ended(prepare)).exit_code == 0
    directory = node.root / "workitems/prepared/job-1/jobpreparation"
    assert directory.stat().st_uid == FIRST + 1
    uids = [int(await node.output(as_user(task(f"a{number}", shell("id -u")), TASK))) for number in range(9)]
    assert uids == [*range(FIRST + 2, LAST + 1), FIRST + 2]
    node.service.send(EndJobSession(job_id="prepared"), RemoveFiles(job_id="prepared"))
    await until(lambda: not directory.exists(), "the directory is removed")
    # those that were freed before it come first
    for number in range(20):
        if int(await node.output(as_user(task(f"b{number}", shell("id -u")), TASK))) == FIRST + 1:
            return
    pytest.fail("the uid of the preparation was never given again")


async def test_without_accounts_a_user_that_the_pool_does_not_have_is_told_all_the_same(
    service: ScriptedService, folder: Path
) -> None:
    """And one that it has runs as the agent's user."""
    async with node_on(folder, service, accounts="none") as node:
        outcome = await node.ended(as_user(task("a", "true"), UserIdentity(username="dora")))
        assert "the pool has no user account 'dora'" in message_of(outcome.failure_info)
        assert await node.output(as_user(task("b", WHO), *named("carol"))) == "0 0 0 root root carol"


async def test_the_file_server_reads_and_removal_removes_what_users_have_closed(node: Node) -> None:
    """Files of mode 0000 in directories of mode 0000 are served and deleted all the same."""
    script = "echo deep > deep; chmod 0 deep; mkdir closed; chmod 0 closed; chmod 0 ."
    await node.output(as_user(task("a", shell(script)), TASK))
    server = node.service.registers[-1].file_server
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {server.token}"}) as client:
        where = {"path": "workitems/job/job-1/task-a/wd/deep"}
        async with client.get(f"{server.url}/v1/file", params=where) as answer:
            assert (answer.status, await answer.text()) == (200, "deep\n")
    node.service.send(RemoveFiles(job_id="job"))
    await until(lambda: not node.directory("task-a").exists(), "the directory is removed")
    await until(lambda: not list((node.root / "volatile/bin").iterdir()), "the bin is empty")


async def test_a_uid_stays_a_running_tasks_own_over_lives_of_the_agent(service: ScriptedService, folder: Path) -> None:
    """The next life gives it to nobody else while the task runs, and closes the directory at its end."""
    script = "id -u > $AZ_BATCH_NODE_SHARED_DIR/uid; until [ -e $AZ_BATCH_NODE_SHARED_DIR/go ]; do sleep 0.05; done"
    async with node_on(folder, service) as first:
        service.send(as_user(task("a", shell(script)), TASK))
        await until(lambda: (first.shared / "uid").exists() and bool((first.shared / "uid").read_text()), "it runs")
    async with node_on(folder, service) as second:
        assert await second.output(as_user(task("b", shell("id -u")), TASK)) == str(FIRST + 2)
        assert second.directory("task-a").stat().st_uid == FIRST + 1
        (second.shared / "go").touch()
        await service.terminal("a")
        assert second.directory("task-a").stat().st_uid == 0
        assert (second.shared / "uid").stat().st_uid == FIRST + 1


async def refused(folder: Path, **settings: object) -> str:
    """Start an agent that cannot start; its last words. It ends with status 2."""
    key = folder / "key"
    key.write_text("k" * 20)
    given = {"node_key": None, "node_key_file": key, "accounts": "uids"} | settings
    text = agent_settings(folder, "http://127.0.0.1:1", **given).model_dump_json(exclude_none=True)
    program = (
        "import asyncio, sys; from nodeagent.agent.daemon import run_agent;"
        "from nodeagent.agent.settings import AgentSettings;"
        "sys.exit(asyncio.run(run_agent(AgentSettings.model_validate_json(sys.argv[1]))))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, text, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(30):
        _, err = await process.communicate()
    assert process.returncode == 2, err
    return err.decode().splitlines()[-1]


async def test_a_root_that_users_cannot_reach_keeps_the_agent_from_starting(folder: Path) -> None:
    """The line names the directory, its mode, and what to do."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    told = await refused(folder, root=closed / "root")
    assert f"{closed} (mode 0700)" in told
    assert 'accounts = "none"' in told


async def test_a_range_with_accounts_of_the_machine_is_refused(folder: Path) -> None:
    """The names of those that are in the way are told."""
    assert "daemon" in await refused(folder, uid_range=(1, 9))


async def test_two_agents_of_a_machine_do_not_share_uids(node: Node) -> None:
    """A range that overlaps that of a living agent is refused, another one is not."""
    other = node.root.parent / "other"
    other.mkdir(mode=0o711)
    told = await refused(other, uid_range=(LAST, LAST + 9))
    assert f"another agent of this machine gives out uids from {LAST}" in told


def run_as(user: int, folder: Path, job: dict[str, object], **environment: str) -> tuple[dict[str, object], str]:
    """Run a job with `nodeagent run` as a user; the outcome and what the agent logged."""
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    os.chown(folder, user, user)
    # the interpreter may lie where only root can read: that is all that the capability is for
    drop = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    drop += ["--bounding-set=-all,+dac_read_search", "--inh-caps=-all,+dac_read_search"]
    drop += ["--ambient-caps=-all,+dac_read_search"]
    state = folder / "run"
    done = subprocess.run(
        [*drop, sys.executable, "-m", "nodeagent", "run", str(file), "--json", f"--state-dir={state}"],
        env={**os.environ, "HOME": str(folder), **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), (state / "nodes/node-1/agent.log").read_text()


IDENTITIES = {
    "pool": {"autoUser": {"scope": "pool"}},
    "task": {"autoUser": {"scope": "task"}},
    "admin": {"autoUser": {"elevationLevel": "admin"}},
}


def job_of(script: str) -> dict[str, object]:
    """A job with a task of each identity."""
    tasks = [
        {"id": name, "commandLine": shell(script), "userIdentity": identity} for name, identity in IDENTITIES.items()
    ]
    return {"id": "who", "tasks": tasks}


def printed_by(folder: Path) -> dict[str, str]:
    """What the tasks of `job_of` printed."""
    where = folder / "run/nodes/node-1/root/workitems/who/job-1"
    return {name: (where / name / "stdout.txt").read_text().strip() for name in IDENTITIES}


def test_for_a_plain_user_every_task_is_that_user_and_the_log_says_so_once(folder: Path) -> None:
    """`nodeagent run` without root: each identity is accepted, and the truth is told."""
    _, log = run_as(PLAIN_USER, folder, job_of("echo $(id -u) $USER $AZ_BATCH_TASK_USER_IDENTITY"))
    user = f"{PLAIN_USER} {PLAIN_USER}"
    assert printed_by(folder) == {
        "pool": f"{user} PoolNonAdmin",
        "task": f"{user} TaskNonAdmin",
        "admin": f"{user} PoolAdmin",
    }
    assert log.count("every task runs as the agent's own user") == 1
    assert "the agent is not root" in log


def test_local_mode_of_root_keeps_users_apart_only_when_asked(folder: Path) -> None:
    """`nodeagent run` as root: tasks are root; with `agent.accounts` they are what they ask for."""
    job = job_of("id -u")
    uids = {"NODEAGENT_AGENT_ACCOUNTS": "uids", "NODEAGENT_AGENT_UID_RANGE": f"[{FIRST}, {LAST}]"}
    for environment, expected in ({}, {"0"}), (uids, {"0", str(FIRST), str(FIRST + 1)}):
        command = [sys.executable, "-m", "nodeagent", "run", str(folder / "job.json"), "--json"]
        (folder / "job.json").write_text(json.dumps(job))
        done = subprocess.run(
            [*command, f"--state-dir={folder}/run", "--slots=1"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert set(printed_by(folder).values()) == expected
        rmtree(folder / "run")


async def test_a_named_user_of_the_pool_through_the_sdk(folder: Path) -> None:
    """Service and agent as they are: the pool's account reaches the node, its password does not leave the service."""
    stop = asyncio.Event()
    async with Service(ServiceSettings(port=0, state_dir=folder / "service", key=SecretStr(ACCOUNT_KEY))) as service:
        facts = {"accounts": "uids", "uid_range": (FIRST, LAST), "pool": "named", "node_key": service.node_key}
        with BatchClient(service.url, AzureNamedKeyCredential("devaccount", ACCOUNT_KEY)) as client:
            await asyncio.to_thread(_make_named_pool, client)
            agent = asyncio.create_task(run_agent(agent_settings(folder, service.url, **facts), stop))
            ended = {name: await asyncio.to_thread(completed, client, "j", name) for name in ("known", "unknown")}
            shown = await asyncio.to_thread(client.get_pool, "named")
        stop.set()
        assert await agent == 0

    where = folder / "root/workitems/j/job-1"
    assert (where / "known/stdout.txt").read_text() == "70123 70124 carol carol\n"
    assert (ended["unknown"].execution_info.exit_code, ended["unknown"].execution_info.failure_info.code) == (
        None,
        "CommandLaunchFailed",
    )
    assert [user.as_dict() for user in shown.user_accounts or ()] == [
        {"name": "carol", "elevationLevel": "nonadmin", "linuxUserConfiguration": {"uid": 70123, "gid": 70124}}
    ]
    assert _files_with_password(folder) <= {"service.db", "service.db-wal"}


def _files_with_password(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()}


def _make_named_pool(client: Sdk) -> None:
    linux = models.LinuxUserConfiguration(uid=70123, gid=70124)
    account = models.UserAccount(name="carol", password=PASSWORD, linux_user_configuration=linux)
    client.create_pool(
        models.BatchPoolCreateOptions(id="named", vm_size="x", task_slots_per_node=2, user_accounts=[account])
    )
    client.create_job(models.BatchJobCreateOptions(id="j", pool_info=models.BatchPoolInfo(pool_id="named")))
    for name, user in ("known", "carol"), ("unknown", "dave"):
        identity = models.UserIdentity(username=user)
        script = shell("echo $(id -u) $(id -g) $USER $AZ_BATCH_TASK_USER_IDENTITY")
        client.create_task("j", models.BatchTaskCreateOptions(id=name, command_line=script, user_identity=identity))
