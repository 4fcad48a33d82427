"""Small value types shared by several Batch entities: ids, name-value pairs, identities, error details."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from nodeagent.model.base import BatchModel
from nodeagent.model.enums import AccessScope, AutoUserScope, ElevationLevel
from nodeagent.model.times import Duration, not_negative

_MAX_INT32 = 2**31 - 1

Int32 = Annotated[int, Field(ge=-_MAX_INT32 - 1, le=_MAX_INT32)]
"""A whole number as Batch has them."""

Natural = Annotated[int, Field(ge=0, le=_MAX_INT32)]
"""A whole number from 0."""

Positive = Annotated[int, Field(ge=1, le=_MAX_INT32)]
"""A whole number from 1."""

RetryCount = Annotated[int, Field(ge=-1, le=_MAX_INT32)]
"""How often something may be tried again; -1 is without end."""

TimeLimit = Annotated[Duration, AfterValidator(not_negative)]
"""How long something may last or is kept."""

BatchId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""An id: 1 to 64 letters, digits, hyphens, underscores; compared without case, kept as given (spec/node.md §18)."""

JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}(:job-[0-9]+)?$")]
"""A job's id; jobs of a schedule are named `<schedule>:job-<n>`."""

DisplayName = Annotated[str, StringConstraints(max_length=1024)]


class EnvironmentSetting(BatchModel):
    """One environment variable of a task; an absent value is the empty string (spec/node.md §2)."""

    name: Annotated[str, StringConstraints(min_length=1, pattern=r"^[^=\x00]+$")]
    value: Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")] | None = None


class MetadataItem(BatchModel):
    """One name-value pair that Batch keeps and does not read."""

    name: Annotated[str, StringConstraints(min_length=1)]
    value: str


class NameValuePair(BatchModel):
    """One detail of a failure."""

    name: str
    value: str


class AutoUserSpecification(BatchModel):
    """An account that Batch makes for the task."""

    scope: AutoUserScope = AutoUserScope.POOL
    elevation_level: ElevationLevel = ElevationLevel.NON_ADMIN


class UserIdentity(BatchModel):
    """Who runs a task: a named user of the pool, or an auto user (spec/node.md §7)."""

    username: str | None = None
    auto_user: AutoUserSpecification | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.username is None) == (self.auto_user is None):
            raise ValueError("exactly one of username and autoUser must be given")
        return self


class ApplicationPackageReference(BatchModel):
    """A package to install before a task runs (spec/node.md §6)."""

    application_id: str
    version: str | None = None


class NodeIdentityReference(BatchModel):
    """A user-assigned identity of the pool."""

    resource_id: str | None = None


class AffinityInfo(BatchModel):
    """A hint on which node to run, taken from a node's `affinityId`."""

    affinity_id: str


class AuthenticationTokenSettings(BatchModel):
    """What the task's own token opens: its job (spec/rest.md §6.4)."""

    access: tuple[AccessScope, ...] = ()


DEFAULT_USER_IDENTITY = UserIdentity(auto_user=AutoUserSpecification())
"""What Batch fills in where no identity is given: the pool's non-administrative auto user."""
