"""The table of Batch operations (spec/rest.md §2): what is served, and what is refused by name.

An operation without a handler is one that Batch has and this version has not.
"""

from collections.abc import AsyncIterator

from aiohttp import web

from nodeagent.model.times import utc_now
from nodeagent.service.app_keys import DATABASE, SETTINGS, TASK_TOKENS, TRANSFERS
from nodeagent.service.rest import openapi
from nodeagent.service.rest.auth import authenticator_of
from nodeagent.service.rest.call import RestContext
from nodeagent.service.rest.dispatch import REST_CONTEXT, Operation, RestServer
from nodeagent.service.rest.handlers import (
    applications,
    autoscale,
    files,
    images,
    job_schedules,
    jobs,
    nodes,
    pools,
    tasks,
)
from nodeagent.service.rest.node_files import NodeFiles

_POOL = "/pools/{pool_id}"
_NODE = "/pools/{pool_id}/nodes/{node_id}"
_JOB = "/jobs/{job_id}"
_TASK = "/jobs/{job_id}/tasks/{task_id}"
_SCHEDULE = "/jobschedules/{schedule_id}"

POOL_OPERATIONS = (
    Operation("POST", "/pools", "Pools_CreatePool", pools.add_pool),
    Operation("GET", "/pools", "Pools_ListPools", pools.list_pools),
    Operation("HEAD", _POOL, "Pools_PoolExists", pools.pool_exists),
    Operation("GET", _POOL, "Pools_GetPool", pools.get_pool),
    Operation("PATCH", _POOL, "Pools_UpdatePool", pools.patch_pool),
    Operation("DELETE", _POOL, "Pools_DeletePool", pools.delete_pool),
    Operation("POST", f"{_POOL}/updateproperties", "Pools_ReplacePoolProperties", pools.replace_properties),
    Operation("POST", f"{_POOL}/resize", "Pools_ResizePool", pools.resize_pool),
    Operation("POST", f"{_POOL}/stopresize", "Pools_StopPoolResize", pools.stop_resize),
    Operation("POST", f"{_POOL}/removenodes", "Pools_RemoveNodes", pools.remove_nodes),
    Operation("POST", f"{_POOL}/enableautoscale", "Pools_EnablePoolAutoScale", autoscale.enable),
    Operation("POST", f"{_POOL}/disableautoscale", "Pools_DisablePoolAutoScale", autoscale.disable),
    Operation("POST", f"{_POOL}/evaluateautoscale", "Pools_EvaluatePoolAutoScale", autoscale.evaluate),
    Operation("GET", "/nodecounts", "Pools_ListPoolNodeCounts", pools.list_node_counts),
    Operation("GET", "/supportedimages", "Pools_ListSupportedImages", images.list_images),
    Operation("GET", "/poolusagemetrics", "Pools_ListPoolUsageMetrics", images.list_usage_metrics),
    Operation("GET", "/lifetimepoolstats", "Pools_GetLifetimeStatistics"),
    Operation("GET", "/lifetimejobstats", "Jobs_GetLifetimeStatistics"),
)

NODE_OPERATIONS = (
    Operation("GET", f"{_POOL}/nodes", "Nodes_ListNodes", nodes.list_nodes),
    Operation("GET", _NODE, "Nodes_GetNode", nodes.get_node),
    Operation("POST", f"{_NODE}/reboot", "Nodes_RebootNode", nodes.reboot_node),
    Operation("POST", f"{_NODE}/reimage", "Nodes_ReimageNode", nodes.reimage_node),
    Operation("POST", f"{_NODE}/disablescheduling", "Nodes_DisableNodeScheduling", nodes.disable_scheduling),
    Operation("POST", f"{_NODE}/enablescheduling", "Nodes_EnableNodeScheduling", nodes.enable_scheduling),
    Operation("POST", f"{_NODE}/users", "Nodes_CreateNodeUser"),
    Operation("PUT", f"{_NODE}/users/{{user_name}}", "Nodes_ReplaceNodeUser"),
    Operation("DELETE", f"{_NODE}/users/{{user_name}}", "Nodes_DeleteNodeUser"),
    Operation("GET", f"{_NODE}/remoteloginsettings", "Nodes_GetNodeRemoteLoginSettings", nodes.get_remote_login),
    Operation("POST", f"{_NODE}/uploadbatchservicelogs", "Nodes_UploadNodeLogs"),
    Operation("POST", f"{_NODE}/deallocate", "Nodes_DeallocateNode"),
    Operation("POST", f"{_NODE}/start", "Nodes_StartNode"),
    Operation("GET", f"{_NODE}/extensions", "Nodes_ListNodeExtensions"),
    Operation("GET", f"{_NODE}/extensions/{{name}}", "Nodes_GetNodeExtension"),
    Operation("GET", f"{_NODE}/rdp", "Nodes_GetNodeRemoteDesktop"),
    Operation("GET", f"{_NODE}/files", "Nodes_ListNodeFiles", files.list_node_files),
    Operation("GET", f"{_NODE}/files/{{path...}}", "Nodes_GetNodeFile", files.read_node_file),
    Operation("HEAD", f"{_NODE}/files/{{path...}}", "Nodes_GetNodeFileProperties", files.describe_node_file),
    Operation("DELETE", f"{_NODE}/files/{{path...}}", "Nodes_DeleteNodeFile", files.delete_node_file),
)

JOB_OPERATIONS = (
    Operation("POST", "/jobs", "Jobs_CreateJob", jobs.add_job),
    Operation("GET", "/jobs", "Jobs_ListJobs", jobs.list_jobs),
    Operation("GET", _JOB, "Jobs_GetJob", jobs.get_job),
    Operation("PATCH", _JOB, "Jobs_UpdateJob", jobs.patch_job),
    Operation("PUT", _JOB, "Jobs_ReplaceJob", jobs.update_job),
    Operation("DELETE", _JOB, "Jobs_DeleteJob", jobs.delete_job),
    Operation("POST", f"{_JOB}/disable", "Jobs_DisableJob", jobs.disable_job),
    Operation("POST", f"{_JOB}/enable", "Jobs_EnableJob", jobs.enable_job),
    Operation("POST", f"{_JOB}/terminate", "Jobs_TerminateJob", jobs.terminate_job),
    Operation(
        "GET",
        f"{_JOB}/jobpreparationandreleasetaskstatus",
        "Jobs_ListJobPreparationAndReleaseTaskStatus",
        jobs.list_statuses,
    ),
    # the form that the next link of seed 000 shows
    Operation(
        "GET",
        f"{_JOB}/jobpreparationandreleasestatus",
        "Jobs_ListJobPreparationAndReleaseTaskStatus",
        jobs.list_statuses,
    ),
    Operation("GET", f"{_JOB}/taskcounts", "Jobs_GetJobTaskCounts", jobs.count_tasks),
)

TASK_OPERATIONS = (
    Operation("POST", f"{_JOB}/tasks", "Tasks_CreateTask", tasks.add_task),
    Operation("POST", f"{_JOB}/addtaskcollection", "Tasks_CreateTaskCollection", tasks.add_collection),
    Operation("GET", f"{_JOB}/tasks", "Tasks_ListTasks", tasks.list_tasks),
    Operation("GET", _TASK, "Tasks_GetTask", tasks.get_task),
    Operation("PUT", _TASK, "Tasks_ReplaceTask", tasks.update_task),
    Operation("DELETE", _TASK, "Tasks_DeleteTask", tasks.delete_task),
    Operation("POST", f"{_TASK}/terminate", "Tasks_TerminateTask", tasks.terminate_task),
    Operation("POST", f"{_TASK}/reactivate", "Tasks_ReactivateTask", tasks.reactivate_task),
    Operation("GET", f"{_TASK}/subtasksinfo", "Tasks_ListSubTasks", tasks.list_subtasks),
    Operation("GET", f"{_TASK}/files", "Tasks_ListTaskFiles", files.list_task_files),
    Operation("GET", f"{_TASK}/files/{{path...}}", "Tasks_GetTaskFile", files.read_task_file),
    Operation("HEAD", f"{_TASK}/files/{{path...}}", "Tasks_GetTaskFileProperties", files.describe_task_file),
    Operation("DELETE", f"{_TASK}/files/{{path...}}", "Tasks_DeleteTaskFile", files.delete_task_file),
)

JOB_SCHEDULE_OPERATIONS = (
    Operation("POST", "/jobschedules", "JobSchedules_CreateJobSchedule", job_schedules.add_schedule),
    Operation("GET", "/jobschedules", "JobSchedules_ListJobSchedules", job_schedules.list_schedules),
    Operation("HEAD", _SCHEDULE, "JobSchedules_JobScheduleExists", job_schedules.schedule_exists),
    Operation("GET", _SCHEDULE, "JobSchedules_GetJobSchedule", job_schedules.get_schedule),
    Operation("PATCH", _SCHEDULE, "JobSchedules_UpdateJobSchedule", job_schedules.patch_schedule),
    Operation("PUT", _SCHEDULE, "JobSchedules_ReplaceJobSchedule", job_schedules.update_schedule),
    Operation("DELETE", _SCHEDULE, "JobSchedules_DeleteJobSchedule", job_schedules.delete_schedule),
    Operation("POST", f"{_SCHEDULE}/disable", "JobSchedules_DisableJobSchedule", job_schedules.disable_schedule),
    Operation("POST", f"{_SCHEDULE}/enable", "JobSchedules_EnableJobSchedule", job_schedules.enable_schedule),
    Operation("POST", f"{_SCHEDULE}/terminate", "JobSchedules_TerminateJobSchedule", job_schedules.terminate_schedule),
    Operation("GET", f"{_SCHEDULE}/jobs", "Jobs_ListJobsFromSchedule", job_schedules.list_jobs),
)

OTHER_OPERATIONS = (
    Operation("GET", "/applications", "Applications_ListApplications", applications.list_applications),
    Operation("GET", "/applications/{application_id}", "Applications_GetApplication", applications.get_application),
    Operation("POST", "/certificates", "Certificates_AddCertificate"),
    Operation("GET", "/certificates", "Certificates_ListCertificates"),
)

OPERATIONS = (
    *POOL_OPERATIONS,
    *NODE_OPERATIONS,
    *JOB_OPERATIONS,
    *TASK_OPERATIONS,
    *JOB_SCHEDULE_OPERATIONS,
    *OTHER_OPERATIONS,
)
"""Every operation of the Batch API, served or refused."""


def add_routes(app: web.Application) -> None:
    """Serve the Batch API under every path of `app` that no other route takes.

    `app` must have its `DATABASE` and `SETTINGS` already.
    """
    settings = app[SETTINGS]
    context = RestContext(
        database=app[DATABASE],
        authenticator=authenticator_of(settings, app[TASK_TOKENS], utc_now),
        node_files=NodeFiles(),
        clock=utc_now,
        loose=settings.loose,
        auto_storage=settings.auto_storage_url is not None,
        transfers=app[TRANSFERS],
    )

    async def close_node_files(_: web.Application) -> AsyncIterator[None]:
        yield
        await context.node_files.close()

    app[REST_CONTEXT] = context
    app.cleanup_ctx.append(close_node_files)
    app.router.add_get(openapi.PATH, openapi.handler(OPERATIONS))
    app.router.add_route("*", "/{path:(?s:.*)}", RestServer(context, OPERATIONS).handle)
