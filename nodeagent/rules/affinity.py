"""Which node a task's `affinityInfo` asks for (spec/rest.md §3.3): a soft hint."""

_PREFIX = "tvm:"


def preferred_node(affinity_id: str) -> str:
    """Return the lower-case id of the node that an affinity id names: `TVM:<nodeId>`, or the bare node id."""
    return affinity_id.lower().removeprefix(_PREFIX)
