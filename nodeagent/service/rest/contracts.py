"""What each operation takes and gives, for `/openapi.json` and docs/rest-api.md (spec/rest.md §2).

The routing table says which operations are served; a test holds both together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from nodeagent.model.application import Application
from nodeagent.model.base import BatchModel
from nodeagent.model.enums import NodeState
from nodeagent.model.job import Job, JobCreate, JobPatch, JobPreparationAndReleaseTaskStatus, JobUpdate
from nodeagent.model.job_schedule import JobSchedule, JobScheduleCreate, JobSchedulePatch, JobScheduleUpdate
from nodeagent.model.node import DisableSchedulingOptions, Node, RebootOptions, ReimageOptions
from nodeagent.model.pool import (
    AutoScaleRun,
    EnableAutoScale,
    EvaluateAutoScale,
    NodesToRemove,
    Pool,
    PoolCreate,
    PoolPatch,
    PoolProperties,
    PoolResize,
)
from nodeagent.model.task import Task, TaskCounts, TaskCreate
from nodeagent.service.rest.handlers.jobs import DisableParameters, TerminateParameters
from nodeagent.service.rest.handlers.tasks import MAX_COLLECTION, TaskUpdate

Schema = Mapping[str, Any]
"""A JSON schema; a model in it stands for the model's own schema."""


class Body(StrEnum):
    """Bodies that are no JSON object of one entity."""

    NONE = "none"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Contract:
    """One operation: the status of success, its bodies, and its options in the query besides those of every call."""

    status: int
    takes: type[BatchModel] | Schema | None = None
    gives: type[BatchModel] | Schema | Body = Body.NONE
    many: bool = False
    """Whether the answer is a page of what it `gives`."""
    body_optional: bool = False
    options: tuple[str, ...] = ()
    conditional: bool = False
    """Whether the four conditional headers are known."""


LIST_OPTIONS: Final = ("maxresults", "$filter", "$select", "$expand", "$skiptoken")
_ENTITY_OPTIONS: Final = ("$select", "$expand")
_FILE_OPTIONS: Final = ("maxresults", "$filter", "$skiptoken", "recursive")

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NODE_COUNTS: Schema = {
    "type": "object",
    "description": f"How many nodes are in each of {len(NodeState)} states, and their total.",
    "properties": {"total": _COUNT},
    "additionalProperties": _COUNT,
}
_FILE_ITEM: Schema = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "url": _TEXT,
        "isDirectory": {"type": "boolean"},
        "properties": {
            "type": "object",
            "properties": {
                "lastModified": {"type": "string", "format": "date-time"},
                "contentLength": {"type": "string", "pattern": "^[0-9]+$"},
                "contentType": _TEXT,
                "fileMode": _TEXT,
            },
        },
    },
    "required": ["name", "url", "isDirectory"],
}
_TASK_ADDED: Schema = {
    "type": "object",
    "properties": {
        "status": {"enum": ["success", "clienterror", "servererror"]},
        "taskId": _TEXT,
        "eTag": _TEXT,
        "lastModified": {"type": "string", "format": "date-time"},
        "location": _TEXT,
        "error": {"$ref": "#/components/schemas/BatchError"},
    },
    "required": ["status", "taskId"],
}


def _page_of(what: type[BatchModel] | Schema, *options: str) -> Contract:
    return Contract(200, gives=what, many=True, options=options or LIST_OPTIONS)


def _changes(status: int, takes: type[BatchModel] | Schema | None = None, *options: str) -> Contract:
    """An operation on one entity with an ETag, that answers without a body."""
    return Contract(status, takes, conditional=True, options=options)


def _shows(what: type[BatchModel]) -> Contract:
    return Contract(200, gives=what, options=_ENTITY_OPTIONS, conditional=True)


CONTRACTS: Mapping[str, Contract] = {
    "Pools_CreatePool": Contract(201, PoolCreate),
    "Pools_ListPools": _page_of(Pool),
    "Pools_PoolExists": _changes(200),
    "Pools_GetPool": _shows(Pool),
    "Pools_UpdatePool": _changes(200, PoolPatch),
    "Pools_DeletePool": _changes(202),
    "Pools_ReplacePoolProperties": _changes(204, PoolProperties),
    "Pools_ResizePool": _changes(202, PoolResize),
    "Pools_StopPoolResize": _changes(202),
    "Pools_RemoveNodes": _changes(202, NodesToRemove),
    "Pools_EnablePoolAutoScale": _changes(200, EnableAutoScale),
    "Pools_DisablePoolAutoScale": Contract(200),
    "Pools_EvaluatePoolAutoScale": Contract(200, EvaluateAutoScale, AutoScaleRun),
    "Pools_ListPoolNodeCounts": _page_of(
        {
            "type": "object",
            "properties": {"poolId": _TEXT, "dedicated": _NODE_COUNTS, "lowPriority": _NODE_COUNTS},
        }
    ),
    "Pools_ListSupportedImages": _page_of(
        {
            "type": "object",
            "properties": {
                "nodeAgentSKUId": _TEXT,
                "imageReference": {"type": "object"},
                "osType": {"enum": ["linux", "windows"]},
                "capabilities": {"type": "array", "items": _TEXT},
                "verificationType": {"enum": ["verified", "unverified"]},
            },
        }
    ),
    "Pools_ListPoolUsageMetrics": Contract(200, gives={"type": "object"}, many=True),
    "Nodes_GetNodeRemoteLoginSettings": Contract(
        200,
        gives={
            "type": "object",
            "properties": {"remoteLoginIPAddress": _TEXT, "remoteLoginPort": {"type": "integer"}},
        },
    ),
    "Nodes_ListNodes": _page_of(Node),
    "Nodes_GetNode": Contract(200, gives=Node, options=_ENTITY_OPTIONS),
    "Nodes_RebootNode": Contract(202, RebootOptions, body_optional=True),
    "Nodes_ReimageNode": Contract(202, ReimageOptions, body_optional=True),
    "Nodes_DisableNodeScheduling": Contract(200, DisableSchedulingOptions, body_optional=True),
    "Nodes_EnableNodeScheduling": Contract(200),
    "Nodes_ListNodeFiles": _page_of(_FILE_ITEM, *_FILE_OPTIONS),
    "Nodes_GetNodeFile": Contract(200, gives=Body.FILE),
    "Nodes_GetNodeFileProperties": Contract(200),
    "Nodes_DeleteNodeFile": Contract(200, options=("recursive",)),
    "Jobs_CreateJob": Contract(201, JobCreate),
    "Jobs_ListJobs": _page_of(Job),
    "Jobs_GetJob": _shows(Job),
    "Jobs_UpdateJob": _changes(200, JobPatch),
    "Jobs_ReplaceJob": _changes(200, JobUpdate),
    "Jobs_DeleteJob": _changes(202, None, "force"),
    "Jobs_DisableJob": _changes(202, DisableParameters),
    "Jobs_EnableJob": _changes(202),
    "Jobs_TerminateJob": Contract(202, TerminateParameters, body_optional=True, options=("force",), conditional=True),
    "Jobs_ListJobPreparationAndReleaseTaskStatus": _page_of(JobPreparationAndReleaseTaskStatus),
    "Jobs_GetJobTaskCounts": Contract(
        200,
        gives={
            "type": "object",
            "description": "Before 2020-09 the five numbers of `taskCounts` stand at the top.",
            "properties": {"taskCounts": TaskCounts, "taskSlotCounts": TaskCounts},
        },
    ),
    "Tasks_CreateTask": Contract(201, TaskCreate),
    "Tasks_CreateTaskCollection": Contract(
        200,
        takes={
            "type": "object",
            "properties": {
                "value": {"type": "array", "items": TaskCreate, "minItems": 1, "maxItems": MAX_COLLECTION},
            },
            "required": ["value"],
            "additionalProperties": False,
        },
        gives={"type": "object", "properties": {"value": {"type": "array", "items": _TASK_ADDED}}},
    ),
    "Tasks_ListTasks": _page_of(Task),
    "Tasks_GetTask": _shows(Task),
    "Tasks_ReplaceTask": _changes(200, TaskUpdate),
    "Tasks_DeleteTask": _changes(200),
    "Tasks_TerminateTask": _changes(204),
    "Tasks_ReactivateTask": _changes(204),
    "Tasks_ListSubTasks": _page_of({"type": "object"}, "$select"),
    "Tasks_ListTaskFiles": _page_of(_FILE_ITEM, *_FILE_OPTIONS),
    "Tasks_GetTaskFile": Contract(200, gives=Body.FILE),
    "Tasks_GetTaskFileProperties": Contract(200),
    "Tasks_DeleteTaskFile": Contract(200, options=("recursive",)),
    "JobSchedules_CreateJobSchedule": Contract(201, JobScheduleCreate),
    "JobSchedules_ListJobSchedules": _page_of(JobSchedule),
    "JobSchedules_JobScheduleExists": _changes(200),
    "JobSchedules_GetJobSchedule": _shows(JobSchedule),
    "JobSchedules_UpdateJobSchedule": _changes(200, JobSchedulePatch),
    "JobSchedules_ReplaceJobSchedule": _changes(200, JobScheduleUpdate),
    "JobSchedules_DeleteJobSchedule": _changes(202, None, "force"),
    "JobSchedules_DisableJobSchedule": _changes(204),
    "JobSchedules_EnableJobSchedule": _changes(204),
    "JobSchedules_TerminateJobSchedule": _changes(202, None, "force"),
    "Jobs_ListJobsFromSchedule": _page_of(Job),
    "Applications_ListApplications": _page_of(Application),
    "Applications_GetApplication": Contract(200, gives=Application, options=("$select",)),
}
"""By the name of the operation."""

P2: Final = frozenset(
    {
        "Pools_GetLifetimeStatistics",
        "Jobs_GetLifetimeStatistics",
        "Nodes_DeallocateNode",
        "Nodes_StartNode",
        "Nodes_ListNodeExtensions",
        "Nodes_GetNodeExtension",
        "Nodes_GetNodeRemoteDesktop",
        "Certificates_AddCertificate",
        "Certificates_ListCertificates",
    }
)
"""Operations that make sense in Azure only, or that Batch has removed: answered, but not meant to be built."""
