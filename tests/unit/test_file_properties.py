"""What the service refuses of resource and output files: by property, with what would be right, without the value."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nodeagent.model.job import JobCreate
from nodeagent.model.task import TaskCreate
from nodeagent.rules.file_properties import AUTO_STORAGE_NEEDED, FileFault, job_file_faults, task_file_faults
from nodeagent.service.errors import BatchError
from nodeagent.service.rest.validate import parse, refuse_faults

URL = "https://account.blob.core.windows.net/c?sv=1&sig=SECRET"
FILE = {"httpUrl": "https://h/x?sig=SECRET", "filePath": "x"}
OUTPUT: dict[str, Any] = {"filePattern": "*.txt", "destination": {"container": {"containerUrl": URL}}}


def task(**more: object) -> dict[str, Any]:
    """Return the body of a task."""
    return {"id": "t", "commandLine": "x", **more}


def refusal(body: dict[str, Any], *, auto_storage: bool = False) -> tuple[str, dict[str, str]]:
    """Return code and values of the error that adding a task gives; an empty code if it is taken."""
    try:
        refuse_faults(task_file_faults(parse(TaskCreate, body), auto_storage=auto_storage))
    except BatchError as error:
        return error.code, dict(error.values)
    return "", {}


@pytest.mark.parametrize(
    ("file", "code", "name"),
    [
        (FILE, "", ""),
        (FILE | {"filePath": "a/b c/d"}, "", ""),
        (FILE | {"fileMode": "0750"}, "", ""),
        ({"storageContainerUrl": URL}, "", ""),
        ({"storageContainerUrl": URL, "filePath": "in", "blobPrefix": "2026/"}, "", ""),
        ({"storageContainerUrl": "http://127.0.0.1:10000/account/c?sig=SECRET"}, "", ""),
        (FILE | {"identityReference": {"resourceId": "/subscriptions/x"}}, "", ""),
        ({}, "InvalidPropertyValue", "resourceFiles[1]"),
        ({"filePath": "x"}, "InvalidPropertyValue", "resourceFiles[1]"),
        (FILE | {"storageContainerUrl": URL}, "InvalidPropertyValue", "resourceFiles[1].storageContainerUrl"),
        (
            {"storageContainerUrl": URL, "autoStorageContainerName": "c1c"},
            "InvalidPropertyValue",
            "resourceFiles[1].autoStorageContainerName",
        ),
        ({"httpUrl": "https://h/x?sig=SECRET"}, "MissingRequiredProperty", "resourceFiles[1].filePath"),
        (FILE | {"blobPrefix": "a"}, "InvalidPropertyValue", "resourceFiles[1].blobPrefix"),
        (FILE | {"filePath": ""}, "InvalidPropertyValue", "resourceFiles[1].filePath"),
        (FILE | {"filePath": "/etc/x"}, "InvalidPropertyValue", "resourceFiles[1].filePath"),
        (FILE | {"filePath": "a/../../x"}, "InvalidPropertyValue", "resourceFiles[1].filePath"),
        (FILE | {"filePath": "a/"}, "InvalidPropertyValue", "resourceFiles[1].filePath"),
        (FILE | {"filePath": "a" * 256}, "InvalidPropertyValue", "resourceFiles[1].filePath"),
        (FILE | {"filePath": "a\x00b"}, "InvalidPropertyValue", "resourceFiles[1].filePath"),
        ({"storageContainerUrl": URL, "filePath": "../in"}, "InvalidPropertyValue", "resourceFiles[1].filePath"),
        (FILE | {"fileMode": "rwxr-x---"}, "InvalidPropertyValue", "resourceFiles[1].fileMode"),
        (FILE | {"fileMode": "0789"}, "InvalidPropertyValue", "resourceFiles[1].fileMode"),
        (FILE | {"fileMode": "17777"}, "InvalidPropertyValue", "resourceFiles[1].fileMode"),
        (FILE | {"httpUrl": "file:///etc/SECRET"}, "InvalidPropertyValue", "resourceFiles[1].httpUrl"),
        (FILE | {"httpUrl": "https:///SECRET"}, "InvalidPropertyValue", "resourceFiles[1].httpUrl"),
        (FILE | {"httpUrl": "https://h:x/SECRET"}, "InvalidPropertyValue", "resourceFiles[1].httpUrl"),
        (FILE | {"httpUrl": "https://[h/SECRET"}, "InvalidPropertyValue", "resourceFiles[1].httpUrl"),
        (FILE | {"httpUrl": "https://h/a b SECRET"}, "InvalidPropertyValue", "resourceFiles[1].httpUrl"),
        (
            {"storageContainerUrl": "https://account.blob.core.windows.net/?sig=SECRET"},
            "InvalidPropertyValue",
            "resourceFiles[1].storageContainerUrl",
        ),
        (
            {"storageContainerUrl": "http://127.0.0.1:10000/account?sig=SECRET"},
            "InvalidPropertyValue",
            "resourceFiles[1].storageContainerUrl",
        ),
        (
            FILE | {"identityReference": {}},
            "MissingRequiredProperty",
            "resourceFiles[1].identityReference.resourceId",
        ),
        ({"autoStorageContainerName": "input"}, "InvalidPropertyValue", "resourceFiles[1].autoStorageContainerName"),
    ],
)
def test_resource_files(file: dict[str, Any], code: str, name: str) -> None:
    """What is right passes; what is wrong is named with its place in the list."""
    found, values = refusal(task(resourceFiles=[FILE, file]))
    assert "SECRET" not in str(values)
    assert (found, values.get("PropertyName", "")) == (code, name)


def test_auto_storage_is_what_the_service_has() -> None:
    """Without the settings the refusal names them; with them a container's name is all that must be right."""
    body = task(resourceFiles=[{"autoStorageContainerName": "input"}])
    assert refusal(body)[1]["Reason"] == AUTO_STORAGE_NEEDED
    assert "auto_storage_url" in AUTO_STORAGE_NEEDED
    assert refusal(body, auto_storage=True)[0] == ""
    for name in ("Input", "a", "a--b", "-ab", "https://h/c", "a" * 64):
        wrong = task(resourceFiles=[{"autoStorageContainerName": name}])
        assert refusal(wrong, auto_storage=True)[0] == "InvalidPropertyValue", name
    identity = {"autoStorageContainerName": "input", "identityReference": {"resourceId": "/x"}}
    assert refusal(task(resourceFiles=[identity]), auto_storage=True)[1]["PropertyName"] == (
        "resourceFiles[0].identityReference"
    )


def output(**container: object) -> dict[str, Any]:
    """Return an output file whose container has these properties."""
    return OUTPUT | {"destination": {"container": {"containerUrl": URL, **container}}}


@pytest.mark.parametrize(
    ("file", "code", "name"),
    [
        (OUTPUT, "", ""),
        (OUTPUT | {"uploadOptions": {"uploadCondition": "TaskFailure"}}, "", ""),
        (output(path="a/b", uploadHeaders=[{"name": "Content-Type", "value": "text/plain"}]), "", ""),
        (OUTPUT | {"filePattern": ""}, "InvalidPropertyValue", "outputFiles[0].filePattern"),
        (OUTPUT | {"filePattern": " "}, "InvalidPropertyValue", "outputFiles[0].filePattern"),
        (OUTPUT | {"filePattern": "a\x00"}, "InvalidPropertyValue", "outputFiles[0].filePattern"),
        ({"filePattern": "*"}, "MissingRequiredProperty", "outputFiles[0].destination"),
        (
            {"filePattern": "*", "destination": {"container": {}}},
            "MissingRequiredProperty",
            "outputFiles[0].destination.container.containerUrl",
        ),
        (
            output(containerUrl="ftp://h/c"),
            "InvalidPropertyValue",
            "outputFiles[0].destination.container.containerUrl",
        ),
        (
            output(containerUrl="https://h?sig=SECRET"),
            "InvalidPropertyValue",
            "outputFiles[0].destination.container.containerUrl",
        ),
        (output(path="\x00"), "InvalidPropertyValue", "outputFiles[0].destination.container.path"),
        (
            output(identityReference={}),
            "MissingRequiredProperty",
            "outputFiles[0].destination.container.identityReference.resourceId",
        ),
        (
            output(uploadHeaders=[{"name": "a", "value": "b"}, {"name": "a b"}]),
            "InvalidPropertyValue",
            "outputFiles[0].destination.container.uploadHeaders[1].name",
        ),
        (
            output(uploadHeaders=[{"name": "Authorization", "value": "x"}]),
            "InvalidPropertyValue",
            "outputFiles[0].destination.container.uploadHeaders[0].name",
        ),
        (
            output(uploadHeaders=[{"name": "a", "value": "x\r\nHost: y"}]),
            "InvalidPropertyValue",
            "outputFiles[0].destination.container.uploadHeaders[0].value",
        ),
    ],
)
def test_output_files(file: dict[str, Any], code: str, name: str) -> None:
    """The same for what goes out."""
    found, values = refusal(task(outputFiles=[file]))
    assert "SECRET" not in str(values)
    assert (found, values.get("PropertyName", "")) == (code, name)


def test_the_tasks_of_a_job_are_looked_at_too() -> None:
    """Manager, preparation and release are named; those two have no output files at all."""
    body: dict[str, Any] = {
        "id": "j",
        "poolInfo": {"poolId": "p"},
        "jobManagerTask": task(outputFiles=[OUTPUT | {"filePattern": ""}]),
        "jobPreparationTask": {"commandLine": "x", "resourceFiles": [FILE, FILE | {"filePath": ".."}]},
        "jobReleaseTask": {"commandLine": "x", "resourceFiles": [FILE | {"httpUrl": "h"}]},
    }
    assert [fault.path for fault in job_file_faults(parse(JobCreate, body), auto_storage=False)] == [
        "jobManagerTask.outputFiles[0].filePattern",
        "jobPreparationTask.resourceFiles[1].filePath",
        "jobReleaseTask.resourceFiles[0].httpUrl",
    ]
    for kind in ("jobPreparationTask", "jobReleaseTask"):
        with pytest.raises(BatchError, match="UnsupportedProperty") as caught:
            parse(JobCreate, body | {kind: {"commandLine": "x", "outputFiles": [OUTPUT]}})
        assert dict(caught.value.values)["PropertyName"] == f"{kind}.outputFiles"


@given(st.text(max_size=300), st.text(max_size=40))
def test_any_text_is_judged(path: str, url: str) -> None:
    """No text makes the check fail, and what passes is a path that stays below the task's directory."""
    body = task(resourceFiles=[{"httpUrl": f"https://h/{url}", "filePath": path}])
    try:
        spec = TaskCreate.model_validate(body)
    except ValidationError:
        return
    faults = list(task_file_faults(spec, auto_storage=False))
    assert all(isinstance(fault, FileFault) for fault in faults)
    if not any(fault.path == "resourceFiles[0].filePath" for fault in faults):
        parts = path.split("/")
        assert ".." not in parts
        assert parts[0] != ""
        assert "\x00" not in path
