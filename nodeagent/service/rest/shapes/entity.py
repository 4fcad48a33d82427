"""What all entities share on the wire: the names that may be selected, secrets that are never echoed."""

from typing import Any

from nodeagent.model.base import BatchModel

SECRETS = frozenset({"password", "sshPrivateKey", "accountKey", "sasKey"})
"""Names of properties that are never shown."""


def property_names(model: type[BatchModel]) -> frozenset[str]:
    """Return the top-level wire names of an entity, with `stats`, which an entity may lack."""
    return frozenset(field.alias or name for name, field in model.model_fields.items()) | {"stats"}


def without_secrets(value: Any) -> Any:  # noqa: ANN401 - JSON is anything
    """Return JSON without the passwords and keys that Batch takes and never gives back (spec/rest.md §3.3)."""
    if isinstance(value, dict):
        return {name: without_secrets(item) for name, item in value.items() if name not in SECRETS}
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    return value
