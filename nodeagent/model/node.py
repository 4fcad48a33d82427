"""Compute nodes as the service shows them (spec/rest.md §3.10, spec/node.md §14)."""

from nodeagent.model.base import BatchModel
from nodeagent.model.container import ContainerInfo
from nodeagent.model.enums import DrainOption, ExecutionResult, NodeState, NodeTaskState, SchedulingState, TaskState
from nodeagent.model.failure import FailureInfo
from nodeagent.model.pool import StartTask
from nodeagent.model.protocol import NodeError
from nodeagent.model.task import TaskExecutionInfo
from nodeagent.model.times import UtcTime


class StartTaskInfo(BatchModel):
    """How the start task stands on a node."""

    state: NodeTaskState
    start_time: UtcTime
    end_time: UtcTime | None = None
    exit_code: int | None = None
    container_info: ContainerInfo | None = None
    failure_info: FailureInfo | None = None
    retry_count: int = 0
    last_retry_time: UtcTime | None = None
    result: ExecutionResult | None = None


class RecentTask(BatchModel):
    """A task whose state changed lately on a node."""

    task_url: str
    job_id: str
    task_id: str
    subtask_id: int | None = None
    task_state: TaskState
    execution_info: TaskExecutionInfo


class RebootOptions(BatchModel):
    """The body of "reboot a node"."""

    node_reboot_option: DrainOption | None = None


class ReimageOptions(BatchModel):
    """The body of "reimage a node"."""

    node_reimage_option: DrainOption | None = None


class DisableSchedulingOptions(BatchModel):
    """The body of "disable scheduling on a node"."""

    node_disable_scheduling_option: DrainOption | None = None


class NodeAgentInfo(BatchModel):
    """The agent on a node."""

    version: str
    last_update_time: UtcTime


class Node(BatchModel):
    """A node as "get a node" shows it."""

    id: str
    url: str
    state: NodeState
    scheduling_state: SchedulingState
    state_transition_time: UtcTime
    last_boot_time: UtcTime | None = None
    allocation_time: UtcTime
    ip_address: str | None = None
    affinity_id: str
    vm_size: str
    total_tasks_run: int = 0
    running_tasks_count: int = 0
    running_task_slots_count: int = 0
    total_tasks_succeeded: int = 0
    recent_tasks: tuple[RecentTask, ...] | None = None
    start_task: StartTask | None = None
    start_task_info: StartTaskInfo | None = None
    errors: tuple[NodeError, ...] | None = None
    is_dedicated: bool = True
    node_agent_info: NodeAgentInfo | None = None
