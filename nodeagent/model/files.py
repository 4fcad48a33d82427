"""Files that Batch brings to a task and takes from it (spec/node.md §4, §5)."""

from typing import Annotated, Literal, Self

from pydantic import StringConstraints, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from nodeagent.model.base import BatchModel
from nodeagent.model.enums import UploadCondition
from nodeagent.model.values import NodeIdentityReference


class ResourceFile(BatchModel):
    """A file or a container of files that is downloaded before the command runs."""

    http_url: str | None = None
    storage_container_url: str | None = None
    auto_storage_container_name: str | None = None
    blob_prefix: str | None = None
    file_path: str | None = None
    file_mode: Annotated[str, StringConstraints(pattern=r"^(0o)?[0-7]{3,5}$")] | None = None
    identity_reference: NodeIdentityReference | None = None

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        given = {
            "httpUrl": self.http_url,
            "storageContainerUrl": self.storage_container_url,
            "autoStorageContainerName": self.auto_storage_container_name,
        }
        names = [name for name, source in given.items() if source is not None]
        if not names:
            raise ValueError("exactly one of httpUrl, storageContainerUrl and autoStorageContainerName must be given")
        if len(names) > 1:
            raise _fault(names[1], "value_error", f"cannot be given together with {names[0]}")
        if self.http_url is not None and self.file_path is None:
            raise _fault("filePath", "missing", "Field required")
        if self.http_url is not None and self.blob_prefix is not None:
            raise _fault("blobPrefix", "value_error", "goes only with storageContainerUrl or autoStorageContainerName")
        return self


def _fault(name: str, kind: Literal["missing", "value_error"], message: str) -> ValidationError:
    """Return the error of a rule about several properties, at the one that the client should change."""
    error = PydanticCustomError(kind, message)
    return ValidationError.from_exception_data("ResourceFile", [InitErrorDetails(type=error, loc=(name,), input=None)])


class UploadHeader(BatchModel):
    """A header that is sent with each blob."""

    name: str
    value: str | None = None


class OutputFileBlobContainerDestination(BatchModel):
    """A container that output files go to."""

    container_url: str
    path: str | None = None
    identity_reference: NodeIdentityReference | None = None
    upload_headers: tuple[UploadHeader, ...] | None = None


class OutputFileDestination(BatchModel):
    """Where output files go."""

    container: OutputFileBlobContainerDestination


class OutputFileUploadOptions(BatchModel):
    """When output files go."""

    upload_condition: UploadCondition = UploadCondition.TASK_COMPLETION


class OutputFile(BatchModel):
    """Files that are uploaded after the command has ended."""

    file_pattern: str
    destination: OutputFileDestination
    upload_options: OutputFileUploadOptions = OutputFileUploadOptions()
