"""Secrets of a pool that nobody ever asks for again: they are not kept (invariant I7).

Nodes make the accounts of tasks without passwords, and nobody logs in to them. A task's own registry has its
password in the task's `containerSettings`, which stays.
"""

from typing import Any

from nodeagent.model.pool import PoolCreate, UserAccount


def without_secrets(spec: PoolCreate) -> PoolCreate:
    """Return a pool without the passwords and keys of its accounts and the passwords of its registries."""
    changes: dict[str, object] = {}
    if spec.user_accounts is not None:
        changes["user_accounts"] = tuple(_account(account) for account in spec.user_accounts)
    if spec.virtual_machine_configuration is not None:
        changes["virtual_machine_configuration"] = _machine(spec.virtual_machine_configuration)
    return spec.model_copy(update=changes) if changes else spec


def _account(account: UserAccount) -> UserAccount:
    linux = account.linux_user_configuration
    if linux is not None:
        linux = linux.model_copy(update={"ssh_private_key": None})
    return account.model_copy(update={"password": "", "linux_user_configuration": linux})


def _machine(machine: dict[str, Any]) -> dict[str, Any]:
    """Return the machine's configuration, which is kept as it was sent, without the passwords of its registries."""
    containers = machine.get("containerConfiguration")
    if not isinstance(containers, dict) or not isinstance(containers.get("containerRegistries"), list):
        return machine
    bare = [
        {name: value for name, value in registry.items() if name != "password"}
        if isinstance(registry, dict)
        else registry
        for registry in containers["containerRegistries"]
    ]
    return machine | {"containerConfiguration": containers | {"containerRegistries": bare}}
