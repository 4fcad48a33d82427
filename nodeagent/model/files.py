"""Files that Batch brings to a task and takes from it (spec/node.md §4, §5)."""

from typing import Annotated, Self

from pydantic import StringConstraints, model_validator

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
        sources = (self.http_url, self.storage_container_url, self.auto_storage_container_name)
        if sum(source is not None for source in sources) != 1:
            raise ValueError("exactly one of httpUrl, storageContainerUrl and autoStorageContainerName must be given")
        if self.http_url is not None and self.file_path is None:
            raise ValueError("filePath is required with httpUrl")
        if self.http_url is not None and self.blob_prefix is not None:
            raise ValueError("blobPrefix goes only with storageContainerUrl or autoStorageContainerName")
        return self


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
