"""Diagnostic events, in the shapes of the pages of Azure Batch (spec/node.md §17, seed 003)."""

from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from nodeagent.model.base import BatchModel
from nodeagent.model.protocol import Statistics
from nodeagent.model.times import UtcTime
from nodeagent.model.values import NameValuePair


class EventNodeInfo(BatchModel):
    """The node of an event."""

    pool_id: str
    node_id: str


class EventMultiInstanceSettings(BatchModel):
    """How many nodes the task needs; 1 for ordinary tasks."""

    number_of_instances: int = 1


class EventConstraints(BatchModel):
    """The constraints that the events carry."""

    max_task_retry_count: int


class StartExecutionInfo(BatchModel):
    """What is known of an execution when it starts."""

    retry_count: int


class EventSchedulingError(BatchModel):
    """The failure of an execution; empty strings and no details on success."""

    category: str = ""
    code: str = ""
    message: str = ""
    details: tuple[NameValuePair, ...] = ()


class EndExecutionInfo(BatchModel):
    """What is known of an execution when it has ended; no `exit_code` if it failed before running."""

    start_time: UtcTime | None = None
    end_time: UtcTime
    exit_code: int | None = None
    retry_count: int
    requeue_count: int
    result: str
    scheduling_error: EventSchedulingError = EventSchedulingError()


class TaskEvent(BatchModel):
    """What the task events share."""

    job_id: str
    id: str
    task_type: str
    system_task_version: int
    required_slots: int
    node_info: EventNodeInfo
    multi_instance_settings: EventMultiInstanceSettings = EventMultiInstanceSettings()
    constraints: EventConstraints


class TaskStartEvent(TaskEvent):
    """A task is scheduled to start on a node; emitted again for each retry and requeue."""

    execution_info: StartExecutionInfo


class EventOwn(BatchModel):
    """What nodeagent tells beyond the documented shape."""

    statistics: Statistics
    """What the execution that completed the task used."""


class TaskEndEvent(TaskEvent):
    """A task has completed (TaskCompleteEvent), and, if it failed, once more as TaskFailEvent.

    `nodeagent` is left out where no execution has ended: the task never ran, was terminated, or its node is lost.
    """

    execution_info: EndExecutionInfo
    nodeagent: EventOwn | None = None

    @model_serializer(mode="wrap")
    def _own_is_absent_rather_than_null(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        body: dict[str, Any] = serialize(self)
        if self.nodeagent is None:
            body.pop("nodeagent", None)
        return body


class EventRecord(BatchModel):
    """One event as it is kept and streamed: its number in the log, its time, its name, and its body."""

    seq: int
    time: UtcTime
    operation_name: str
    properties: TaskStartEvent | TaskEndEvent
