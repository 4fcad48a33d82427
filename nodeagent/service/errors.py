"""`BatchError`: a refused call, with the status, code and text that Azure Batch gives (spec/rest.md §7)."""

from collections.abc import Mapping, Sequence

_TEXTS: Mapping[str, tuple[int, str]] = {
    "PoolNotFound": (404, "The specified pool does not exist."),
    "NodeNotFound": (404, "The specified node does not exist."),
    "JobNotFound": (404, "The specified job does not exist."),
    "JobScheduleNotFound": (404, "The specified job schedule does not exist."),
    "TaskNotFound": (404, "The specified task does not exist."),
    "ApplicationNotFound": (404, "The specified application does not exist."),
    "ApplicationPackageNotFound": (404, "The specified version of the application does not exist."),
    "FileNotFound": (404, "The specified file does not exist."),
    "ResourceNotFound": (404, "The specified resource does not exist."),
    "PoolExists": (409, "The specified pool already exists."),
    "JobExists": (409, "The specified job already exists."),
    "JobScheduleExists": (409, "The specified job schedule already exists."),
    "JobWithSameIdExists": (409, "A job with the specified id already exists."),
    "JobScheduleWithSameIdExists": (409, "A job schedule with the specified id already exists."),
    "TaskExists": (409, "The specified task already exists."),
    "ApplicationPackageExists": (
        409,
        "The specified version of the application already exists, with other content.",
    ),
    "ApplicationPackageInUse": (409, "The specified version of the application is in use."),
    "InvalidApplicationPackageReferences": (
        409,
        "One or more of the application package references could not be satisfied.",
    ),
    "PoolBeingDeleted": (409, "The specified pool is being deleted."),
    "PoolBeingResized": (409, "The specified pool is being resized."),
    "JobBeingDeleted": (409, "The specified job is being deleted."),
    "JobBeingTerminated": (409, "The specified job is being terminated."),
    "JobCompleted": (409, "The specified job is already in a completed state."),
    "JobDisabled": (409, "The specified job is disabled."),
    "JobNotActive": (409, "The specified job is not active."),
    "JobScheduleBeingDeleted": (409, "The specified job schedule is being deleted."),
    "JobScheduleBeingTerminated": (409, "The specified job schedule is being terminated."),
    "JobScheduleCompleted": (409, "The specified job schedule is already in a completed state."),
    "JobPreparationTaskNotSpecified": (409, "The specified job does not have a job preparation task."),
    "JobReleaseTaskNotSpecified": (409, "The specified job does not have a job release task."),
    "TaskCompleted": (409, "The specified task is already in a completed state."),
    "TaskNotCompleted": (409, "The specified task has not completed."),
    "TaskSucceeded": (409, "The specified task has completed successfully and can not be reactivated."),
    "TaskFilesUnavailable": (409, "The task has not run yet, so it has no files."),
    "TaskFilesCleanedup": (409, "The files of the specified task have been cleaned up."),
    "TaskIdSameAsJobPreparationTask": (409, "The task id is the same as the id of the job preparation task."),
    "TaskIdSameAsJobReleaseTask": (409, "The task id is the same as the id of the job release task."),
    "NodeNotReady": (409, "The specified node is not ready."),
    "NodeBeingCreated": (409, "The specified node is being created."),
    "NodeBeingStarted": (409, "The specified node is being started."),
    "NodeBeingRebooted": (409, "The specified node is being rebooted."),
    "NodeBeingReimaged": (409, "The specified node is being reimaged."),
    "NodeStateUnusable": (409, "The specified node is not usable."),
    "NodeAlreadyInTargetSchedulingState": (409, "The node is already in the target scheduling state."),
    "OperationInvalidForCurrentState": (409, "The operation is not valid for the current state of the resource."),
    "OperationNotValidOnNode": (409, "The operation is not valid on the specified node."),
    "InsufficientAccountPermissions": (
        403,
        "The account being accessed does not have sufficient permissions to execute this operation.",
    ),
    "TaskDependenciesNotSpecifiedOnJob": (
        400,
        "The task has dependencies, but usesTaskDependencies is not set to true on the job.",
    ),
    "TaskDependencyListTooLong": (400, "The ids in the list of the task's dependencies are too long."),
    "ConditionNotMet": (412, "The condition specified using HTTP conditional header(s) is not met."),
    "AutoScalingFormulaSyntaxError": (400, "The formula for automatic scaling is not correct."),
    "AutoScalingFormulaTooLong": (400, "The formula for automatic scaling is too long."),
    "InvalidPropertyValue": (
        400,
        "The value provided for one of the properties in the request body is invalid.",
    ),
    "InvalidQueryParameterValue": (400, "The value for one of the query parameters specified in the URI is invalid."),
    "MissingRequiredProperty": (400, "A required property was not specified in the request body."),
    "UnsupportedProperty": (400, "One of the properties specified in the request body is not supported."),
    "InvalidRequestBody": (400, "The specified request body is not syntactically valid."),
    "RequestEntityTooLarge": (413, "The list of resource files exceeds the maximum permissible limit."),
    "RequestBodyTooLarge": (413, "The request body is too large and exceeds the maximum permissible limit."),
}


class BatchError(Exception):
    """A call that is refused: HTTP status, Batch's code, the first line of its message, and named values."""

    def __init__(
        self, status: int, code: str, message: str | None = None, values: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.status = status
        self.code = code
        self.message = message or _TEXTS.get(code, (status, code))[1]
        self.values = tuple(values)
        super().__init__(f"({code}) {self.message}")


def refusal(code: str, *values: tuple[str, str]) -> BatchError:
    """Make the error of a code that has a fixed status and text."""
    status, text = _TEXTS[code]
    return BatchError(status, code, text, values)


def invalid_property(name: str, value: object, reason: str) -> BatchError:
    """Make an `InvalidPropertyValue` that names the property, what it is, and what is wrong with it."""
    return refusal("InvalidPropertyValue", ("PropertyName", name), ("PropertyValue", str(value)), ("Reason", reason))
