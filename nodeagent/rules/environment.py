"""The environment of a task, built from nothing (spec/node.md §2): the agent's own never leaks into it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from nodeagent.model.enums import AutoUserScope, ElevationLevel
from nodeagent.model.protocol import Assignment, AttemptKind, PreparationGate
from nodeagent.model.values import EnvironmentSetting, UserIdentity
from nodeagent.rules.layout import NodeLayout

DISTRIBUTION_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

ERROR_FILE_VARIABLE = "NODEAGENT_ERROR_FILE"
"""Not Batch's: where a task may say in its own words why it failed (docs/failure-codes.md)."""
MARKER_VARIABLE = "NODEAGENT_ATTEMPT"
"""Names the attempt in every process of it: the boundary's witness where there is no cgroup."""

_REFERENCE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


class EnvironmentLoopError(ValueError):
    """A custom setting refers to itself, directly or through others."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the environment tells of the node."""

    account_name: str
    account_url: str
    pool_id: str
    node_id: str
    layout: NodeLayout
    user_name: str
    """The OS account that the task runs as."""
    is_dedicated: bool = True
    reserved_disk_bytes: int = 1_000_000


def merge_settings(*sources: Sequence[EnvironmentSetting] | None) -> tuple[EnvironmentSetting, ...]:
    """Merge settings, weakest source first; a later setting of the same name wins and keeps the first's place."""
    merged: dict[str, EnvironmentSetting] = {}
    for source in sources:
        for setting in source or ():
            merged[setting.name] = setting
    return tuple(merged.values())


def identity_name(identity: UserIdentity) -> str:
    """Return AZ_BATCH_TASK_USER_IDENTITY: `PoolNonAdmin`, `TaskAdmin`, ..., or a named user's name."""
    if identity.auto_user is None:
        return identity.username or ""
    scope = "Task" if identity.auto_user.scope is AutoUserScope.TASK else "Pool"
    level = "Admin" if identity.auto_user.elevation_level is ElevationLevel.ADMIN else "NonAdmin"
    return scope + level


def task_environment(
    node: NodeFacts, assignment: Assignment, packages: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Return the whole environment of an attempt; `packages` has the variables of its application packages.

    Custom settings are expanded (`$NAME`, `${NAME}`) against service and custom variables. Service variables
    (`AZ_BATCH_*`, `CCP_NODES`) win over custom ones of the same name; PATH and HOME may be overridden.
    Raises EnvironmentLoopError.
    """
    service = {**packages, **_service_variables(node, assignment)}
    paths = node.layout.task(assignment.job_id, assignment.task_id)
    ambient = {
        "PATH": f"{DISTRIBUTION_PATH}:{node.layout.shared}:{paths.wd}",
        "HOME": str(paths.wd),
        "USER": node.user_name,
        "LANG": "C.UTF-8",
    }
    custom = {
        setting.name: setting.value or ""
        for setting in assignment.work.environment_settings
        if setting.name not in service and not _is_reserved(setting.name)
    }
    return ambient | expand(custom, ambient | service) | service


def _is_reserved(name: str) -> bool:
    return name.startswith("AZ_BATCH_") or name in ("CCP_NODES", ERROR_FILE_VARIABLE, MARKER_VARIABLE)


def _service_variables(node: NodeFacts, assignment: Assignment) -> dict[str, str]:
    layout = node.layout
    paths = layout.task(assignment.job_id, assignment.task_id)
    variables = {
        "AZ_BATCH_ACCOUNT_NAME": node.account_name,
        "AZ_BATCH_ACCOUNT_URL": node.account_url,
        "AZ_BATCH_POOL_ID": node.pool_id,
        "AZ_BATCH_NODE_ID": node.node_id,
        "AZ_BATCH_NODE_IS_DEDICATED": "true" if node.is_dedicated else "false",
        "AZ_BATCH_NODE_ROOT_DIR": str(layout.root),
        "AZ_BATCH_NODE_SHARED_DIR": str(layout.shared),
        "AZ_BATCH_NODE_STARTUP_DIR": str(layout.startup),
        "AZ_BATCH_NODE_STARTUP_WORKING_DIR": str(layout.startup / "wd"),
        "AZ_BATCH_NODE_MOUNTS_DIR": str(layout.mounts),
        "AZ_BATCH_CERTIFICATES_DIR": str(paths.certificates),
        "AZ_BATCH_TASK_DIR": str(paths.root),
        "AZ_BATCH_TASK_WORKING_DIR": str(paths.wd),
        "AZ_BATCH_TASK_USER": node.user_name,
        "AZ_BATCH_TASK_USER_IDENTITY": identity_name(assignment.work.user_identity),
        "AZ_BATCH_TASK_RESERVED_EPHEMERAL_DISK_SPACE_BYTES": str(node.reserved_disk_bytes),
        "AZ_BATCH_RESERVED_DISK_SPACE_BYTES": str(node.reserved_disk_bytes),
        ERROR_FILE_VARIABLE: str(paths.error_file),
    }
    if assignment.attempt_kind is not AttemptKind.START:
        variables["AZ_BATCH_JOB_ID"] = assignment.job_id
        variables["AZ_BATCH_TASK_ID"] = assignment.task_id
    if assignment.work.authentication_token is not None:
        variables["AZ_BATCH_AUTHENTICATION_TOKEN"] = assignment.work.authentication_token
    if assignment.preparation is not None:
        variables |= _preparation_variables(layout, assignment.job_id, assignment.preparation)
    return variables


def _preparation_variables(layout: NodeLayout, job_id: str, preparation: PreparationGate) -> dict[str, str]:
    paths = layout.task(job_id, preparation.task_id)
    return {"AZ_BATCH_JOB_PREP_DIR": str(paths.root), "AZ_BATCH_JOB_PREP_WORKING_DIR": str(paths.wd)}


def expand(custom: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """Expand `$NAME` and `${NAME}` in custom values; unknown names are left as they are.

    A custom value may extend the known variable of its own name (`PATH=$PATH:/opt/tool`). Raises
    EnvironmentLoopError when custom settings refer to each other in a circle.
    """
    done: dict[str, str] = {}

    def value_of(name: str, seen: tuple[str, ...]) -> str | None:
        if name in done:
            return done[name]
        if name not in custom:
            return known.get(name)
        if name in seen:
            if name == seen[-1] and name in known:
                return known[name]
            raise EnvironmentLoopError(
                f"environmentSettings refer to each other in a circle: {' -> '.join((*seen, name))}"
            )

        def replace(match: re.Match[str]) -> str:
            found = value_of(match[1] or match[2], (*seen, name))
            return match[0] if found is None else found

        done_value = _REFERENCE.sub(replace, custom[name])
        done[name] = done_value
        return done_value

    for name in custom:
        value_of(name, ())
    return done
