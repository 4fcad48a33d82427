"""Job files: what is right is read the same from JSON and YAML, what is wrong is told by place and remedy."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.local.job_file import JobFileError, load
from nodeagent.rules.file_properties import AUTO_STORAGE_NEEDED

GOOD: dict[str, Any] = {"id": "j", "tasks": [{"id": "a", "commandLine": "true"}]}


def problems(tmp_path: Path, text: str, name: str = "job.json", *, loose: bool = False) -> list[str]:
    """Return what is told of a text, without the path."""
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(JobFileError) as caught:
        load(file, pool_id="local", loose=loose)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{file}:") for line in lines)
    return [line.removeprefix(f"{file}:") for line in lines]


def test_json_and_yaml_are_the_same(tmp_path: Path) -> None:
    """Both give the same models, and the local pool where none is named."""
    (tmp_path / "j.json").write_text(json.dumps(GOOD))
    (tmp_path / "j.yaml").write_text(yaml.safe_dump(GOOD))
    first, second = (load(tmp_path / name, pool_id="here") for name in ("j.json", "j.yaml"))
    assert (first.job, first.tasks) == (second.job, second.tasks)
    assert first.pool_id == "here"


def test_a_named_pool_is_kept(tmp_path: Path) -> None:
    """A job file that was written for Azure runs in a pool of that name."""
    (tmp_path / "j.json").write_text(json.dumps({**GOOD, "poolInfo": {"poolId": "azure"}}))
    assert load(tmp_path / "j.json", pool_id="here").pool_id == "azure"


def test_every_problem_is_told_at_its_place(tmp_path: Path) -> None:
    """Line and column count from 1, also behind tabs; properties are JSON paths; the order is the file's."""
    text = """{
\t"id": "x y",
\t"priorty": 3,
\t"onAllTasksComplete": "foo",
\t"jobPreparationTask": {"commandLine": "x"},
\t"jobReleaseTask": {"commandLine": "x", "maxWallClockTime": "PT16M"},
\t"tasks": [
\t\t{"id": "b", "commandline": "true", "commandLine": "x"},
\t\t{"id": "z", "commandLine": "x", "constraints": {"maxTaskRetryCount": "many"}}
\t]
}"""
    assert problems(tmp_path, text) == [
        "2:2: id: 'x y' is no id; an id has 1 to 64 letters, digits, '-' and '_'",
        "3:2: priorty: is no property here; did you mean 'priority'?",
        "4:2: onAllTasksComplete: 'foo' is none of 'noaction' or 'terminatejob'",
        "6:41: jobReleaseTask.maxWallClockTime: a job release task may run for at most PT15M",
        "8:15: tasks[0].commandline: is no property here; did you mean 'commandLine'?",
        "9:51: tasks[1].constraints.maxTaskRetryCount: must be a whole number, not 'many'",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("id: 5\ntasks: [{id: a, commandLine: x}]", "1:1: id: must be text (in quotes), not 5"),
        ("id: j\ntasks: []", "2:1: tasks: must be a list of at least one task beside the job's properties"),
        ("id: j", "1:1: tasks: must be a list of at least one task beside the job's properties"),
        ("id: j\ntasks: {a: 1}", "2:1: tasks: must be a list of tasks, not a mapping"),
        ("id: j\ntasks: [just-text]", "2:9: tasks[0]: must be a mapping of properties, not 'just-text'"),
        ("id: j\ntasks:\n  - {id: a, commandLine: x}\n  - {id: A, commandLine: y}", "4:6: tasks[1].id: 'A' is already"),
        ("id: j\nid: k\ntasks: [{id: a, commandLine: x}]", "2:1: id: 'id' is given twice; keep one"),
        ("id: j\ntasks: [{id: a}]", "2:9: tasks[0].commandLine: is required and missing"),
        ("- a\n- b", " must hold one mapping"),
        ("a: [3", "2:1: is not YAML"),
        ("a: \tb: c", "1:6: is not YAML"),
    ],
)
def test_yaml_problems(tmp_path: Path, text: str, told: str) -> None:
    """One line each, with what would be right."""
    lines = problems(tmp_path, text, "job.yaml")
    assert len(lines) == 1
    assert lines[0].startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"id": 3,}', "1:"),
        ('{"id": "j",\n "tasks": [}', "2:12: is not JSON"),
        ('{"id": NaN}', " is not JSON: NaN is no JSON value"),
        ("", "1:1: is not JSON"),
    ],
)
def test_json_problems(tmp_path: Path, text: str, told: str) -> None:
    """Syntax is told by line and column."""
    assert problems(tmp_path, text)[0].startswith(told)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    """The line of the first bad byte is told."""
    file = tmp_path / "j.yaml"
    file.write_bytes(b"id: j\ndisplayName: \xff\n")
    with pytest.raises(JobFileError, match=r":2:1: is not UTF-8 text: byte 0xff"):
        load(file, pool_id="local")


def test_a_task_with_the_id_of_a_special_task(tmp_path: Path) -> None:
    """Default ids of preparation and release are taken."""
    body = {
        "id": "j",
        "jobPreparationTask": {"commandLine": "x"},
        "tasks": [{"id": "JobPreparation", "commandLine": "x"}],
    }
    assert "already the id of jobPreparationTask" in problems(tmp_path, json.dumps(body))[0]


def test_unsupported_properties_by_name(tmp_path: Path) -> None:
    """Refused with their path; `loose` makes each a warning and lets the job pass."""
    body = {"id": "j", "tasks": [{"id": "a", "commandLine": "x", "affinityInfo": {"affinityId": "TVM:n"}}]}
    text = json.dumps(body, indent=1)
    assert "tasks[0].affinityInfo: is not supported by this version" in problems(tmp_path, text)[0]
    (tmp_path / "job.json").write_text(text)
    loose = load(tmp_path / "job.json", pool_id="local", loose=True)
    assert len(loose.warnings) == 1
    assert "tasks[0].affinityInfo" in loose.warnings[0]


def test_the_job_directory_is_told_unless_the_file_does(tmp_path: Path) -> None:
    """NODEAGENT_JOB_DIR is the folder of the file; a file that sets it is respected."""
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    own = {"name": "NODEAGENT_JOB_DIR", "value": "/mine"}
    (tmp_path / "b.json").write_text(json.dumps({**GOOD, "commonEnvironmentSettings": [own]}))
    told = [load(tmp_path / name, pool_id="p").with_job_directory().job for name in ("a.json", "b.json")]
    settings_of = [[(item.name, item.value) for item in job.common_environment_settings or ()] for job in told]
    assert settings_of == [[("NODEAGENT_JOB_DIR", str(tmp_path))], [("NODEAGENT_JOB_DIR", "/mine")]]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "tasks", "x", "commandLine"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(_JSON)
def test_any_json_is_read_or_told(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    """Whatever JSON stands in the file, it is a job or a JobFileError, never another exception."""
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(value))
    try:
        load(file, pool_id="local")
    except JobFileError as error:
        assert error.problems  # noqa: PT017 - both ways are right


@settings(max_examples=200)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_any_yaml_is_read_or_told(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """The same for any text as YAML."""
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text, newline="")
    try:
        load(file, pool_id="local")
    except JobFileError as error:
        assert error.problems  # noqa: PT017 - both ways are right


def test_dependencies_and_actions_need_a_job_that_takes_them(tmp_path: Path) -> None:
    """Told with their place in the file, before anything is started."""
    text = """\
id: j
tasks:
  - id: a
    commandLine: x
    dependsOn: {taskIds: [b]}
  - id: b
    commandLine: x
    exitConditions:
      exitCodes:
        - {code: 3, exitOptions: {jobAction: terminate}}
"""
    waits, acts = problems(tmp_path, text, "job.yaml")
    assert waits.endswith("tasks[0].dependsOn: needs usesTaskDependencies: true of the job")
    assert acts.startswith("10:")
    assert "tasks[1].exitConditions.exitCodes[0].exitOptions.jobAction: the job's onTaskFailure is noaction" in acts
    path = tmp_path / "job.yaml"
    path.write_text(f"usesTaskDependencies: true\nonTaskFailure: performExitOptionsJobAction\n{text}")
    assert len(load(path, pool_id="p").tasks) == 2


NOW = datetime(2026, 5, 1, tzinfo=UTC)
SIGNATURE = "c2lnbmF0dXJlIHRoYXQgbXVzdCBub3QgYmUgc2hvd24%3D"
SAS = f"sv=2024-01-01&sr=c&sig={SIGNATURE}"


def test_what_is_wrong_with_files_is_told_at_its_place(tmp_path: Path) -> None:
    """The same rules as the service's, with line and column; a URL is never repeated."""
    text = """id: j
jobPreparationTask:
  commandLine: x
  resourceFiles:
    - httpUrl: http://h/x
      filePath: ../x
tasks:
  - id: a
    commandLine: x
    resourceFiles:
      - httpUrl: "ftp://h/SECRET"
        filePath: a
      - {httpUrl: "http://h/SECRET"}
      - {httpUrl: "http://h/x", filePath: a, storageContainerUrl: "http://h/SECRET"}
      - autoStorageContainerName: input
      - {httpUrl: [SECRET], filePath: a}
    outputFiles:
      - filePattern: ""
        destination: {container: {containerUrl: "https://h/c?SECRET"}}
"""
    told = problems(tmp_path, text, "job.yaml")
    assert not any("SECRET" in line for line in told)
    leave = (
        "6:7: jobPreparationTask.resourceFiles[0].filePath: the path must not leave the task's working directory:"
        " '..' is not allowed in it"
    )
    assert told == [
        leave,
        "13:9: tasks[0].resourceFiles[1].filePath: is required and missing",
        "14:46: tasks[0].resourceFiles[2].storageContainerUrl: cannot be given together with httpUrl",
        "16:10: tasks[0].resourceFiles[4].httpUrl: must be text (in quotes), not a value that is not shown",
    ], "of a task that is none yet, only that"
    fixed = "\n".join(line for number, line in enumerate(text.splitlines(), 1) if number not in (13, 14, 16))
    assert problems(tmp_path, fixed, "job.yaml") == [
        leave,
        "11:9: tasks[0].resourceFiles[0].httpUrl: must be an http:// or https:// URL",
        f"13:9: tasks[0].resourceFiles[1].autoStorageContainerName: {AUTO_STORAGE_NEEDED}",
        "15:9: tasks[0].outputFiles[0].filePattern: must not be empty",
    ]


def test_auto_storage_passes_where_it_is_set(tmp_path: Path) -> None:
    """The account is the service's to know: a job file names the container only."""
    files = [{"autoStorageContainerName": "input"}]
    (tmp_path / "j.json").write_text(json.dumps({**GOOD, "tasks": [{**GOOD["tasks"][0], "resourceFiles": files}]}))
    found = load(tmp_path / "j.json", pool_id="local", auto_storage=True)
    assert (found.tasks[0].resource_files or ())[0].auto_storage_container_name == "input"


def test_a_sas_that_will_not_hold_is_foreseen(tmp_path: Path) -> None:
    """Each with its line, none with its signature; the file can be run all the same."""
    (tmp_path / "j.yaml").write_text(
        f"""id: j
jobPreparationTask: {{commandLine: x}}
jobReleaseTask:
  commandLine: x
  resourceFiles: [{{storageContainerUrl: "https://a.blob.core.windows.net/c?{SAS}&se=2027-01-01&sp=r"}}]
tasks:
  - id: a
    commandLine: x
    constraints: {{maxWallClockTime: PT2H}}
    resourceFiles:
      - httpUrl: "https://a.blob.core.windows.net/c/b?{SAS}&se=2026-05-01T01:00:00Z&sp=r"
        filePath: b
      - httpUrl: "https://a.blob.core.windows.net/c/b?{SAS}&se=2026-04-30&sp=r"
        filePath: c
"""
    )
    found = load(tmp_path / "j.yaml", pool_id="local", now=NOW)
    first = (
        "tasks[0].resourceFiles[0].httpUrl: the SAS expires at 2026-05-01T01:00:00Z, before maxWallClockTime is over"
    )
    assert [warning.removeprefix(f"{tmp_path}/") for warning in found.warnings] == [
        "j.yaml:5:20: jobReleaseTask.resourceFiles[0].storageContainerUrl: the SAS does not have the permission 'l'",
        f"j.yaml:11:9: {first}",
        "j.yaml:13:9: tasks[0].resourceFiles[1].httpUrl: the SAS expired at 2026-04-30T00:00:00Z",
    ]
    assert not any(SIGNATURE in warning for warning in found.warnings)
