"""The enumerations of Batch, in the spelling of api-version 2025-06-01, accepted in any case (spec/rest.md §1.3)."""

from enum import StrEnum


class BatchEnum(StrEnum):
    """A Batch enumeration: lower case on the wire, any case accepted."""

    @classmethod
    def _missing_(cls, value: object) -> "BatchEnum | None":
        if isinstance(value, str):
            lowered = value.lower()
            return next((member for member in cls if member.value.lower() == lowered), None)
        return None


class JobState(BatchEnum):
    """States of a job (spec/rest.md §8.1)."""

    ACTIVE = "active"
    DISABLING = "disabling"
    DISABLED = "disabled"
    ENABLING = "enabling"
    TERMINATING = "terminating"
    COMPLETED = "completed"
    DELETING = "deleting"


class TaskState(BatchEnum):
    """States of a task (spec/node.md §9)."""

    ACTIVE = "active"
    PREPARING = "preparing"
    RUNNING = "running"
    COMPLETED = "completed"


class PoolState(BatchEnum):
    """States of a pool (spec/rest.md §8.3)."""

    ACTIVE = "active"
    DELETING = "deleting"


class AllocationState(BatchEnum):
    """Whether a pool is gaining or losing nodes (spec/rest.md §8.3)."""

    STEADY = "steady"
    RESIZING = "resizing"
    STOPPING = "stopping"


class NodeState(BatchEnum):
    """States of a node (spec/node.md §14)."""

    CREATING = "creating"
    STARTING = "starting"
    WAITING_FOR_START_TASK = "waitingforstarttask"
    START_TASK_FAILED = "starttaskfailed"
    IDLE = "idle"
    RUNNING = "running"
    REBOOTING = "rebooting"
    REIMAGING = "reimaging"
    UNUSABLE = "unusable"
    UNKNOWN = "unknown"
    LEAVING_POOL = "leavingpool"
    OFFLINE = "offline"
    PREEMPTED = "preempted"
    UPGRADING_OS = "upgradingos"
    DEALLOCATING = "deallocating"
    DEALLOCATED = "deallocated"


class DrainOption(BatchEnum):
    """What becomes of a node's tasks when it is rebooted, reimaged, disabled or removed (spec/node.md §14)."""

    REQUEUE = "requeue"
    TERMINATE = "terminate"
    TASK_COMPLETION = "taskcompletion"
    RETAINED_DATA = "retaineddata"
    """As task completion, and then wait until the files of all tasks have expired; deprecated."""


class SchedulingState(BatchEnum):
    """Whether a node may be given tasks."""

    ENABLED = "enabled"
    DISABLED = "disabled"


class NodeTaskState(BatchEnum):
    """State of a start, preparation or release task on one node (spec/rest.md §3.7)."""

    RUNNING = "running"
    COMPLETED = "completed"


class ExecutionResult(BatchEnum):
    """How an execution ended (spec/node.md §9)."""

    SUCCESS = "success"
    FAILURE = "failure"


class ErrorCategory(BatchEnum):
    """Whose fault a failure is."""

    USER_ERROR = "usererror"
    SERVER_ERROR = "servererror"


class OnAllTasksComplete(BatchEnum):
    """What a job does when all of its tasks are complete."""

    NO_ACTION = "noaction"
    TERMINATE_JOB = "terminatejob"


class OnTaskFailure(BatchEnum):
    """What a job does when one of its tasks fails."""

    NO_ACTION = "noaction"
    PERFORM_EXIT_OPTIONS_JOB_ACTION = "performexitoptionsjobaction"


class JobAction(BatchEnum):
    """What a task's end does to its job."""

    NONE = "none"
    DISABLE = "disable"
    TERMINATE = "terminate"


class DependencyAction(BatchEnum):
    """What a task's end does to the tasks that depend on it."""

    SATISFY = "satisfy"
    BLOCK = "block"


class DisableTasks(BatchEnum):
    """What disabling a job does to its running tasks."""

    REQUEUE = "requeue"
    TERMINATE = "terminate"
    WAIT = "wait"


class AutoUserScope(BatchEnum):
    """Whether an auto user is made per task or shared on the node."""

    TASK = "task"
    POOL = "pool"


class ElevationLevel(BatchEnum):
    """Whether a user has administrator rights."""

    NON_ADMIN = "nonadmin"
    ADMIN = "admin"


class UploadCondition(BatchEnum):
    """When an output file is uploaded."""

    TASK_SUCCESS = "tasksuccess"
    TASK_FAILURE = "taskfailure"
    TASK_COMPLETION = "taskcompletion"


class ContainerWorkingDirectory(BatchEnum):
    """Where a container's process starts."""

    TASK_WORKING_DIRECTORY = "taskWorkingDirectory"
    CONTAINER_IMAGE_DEFAULT = "containerImageDefault"


class NodeFillType(BatchEnum):
    """How tasks are spread over nodes."""

    SPREAD = "spread"
    PACK = "pack"


class AccessScope(BatchEnum):
    """What a task's authentication token opens."""

    JOB = "job"
