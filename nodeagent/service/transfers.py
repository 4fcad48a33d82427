"""How far the transfers of running tasks are, as their nodes last told: in memory, because it is old in a second."""

from collections.abc import Iterable, Mapping

from nodeagent.model.protocol import TransferProgress

_MAX_NODES = 10_000
"""Nodes that left without a word are forgotten, oldest first, when there are so many."""


class Transfers:
    """The last word of each node.

    What a node has told may be out of date (it fell silent, its attempt was given up): readers ask the store which
    attempts still carry a task (`store.attempts.carrying`).
    """

    def __init__(self) -> None:
        self._nodes: dict[str, dict[str, TransferProgress]] = {}

    def __bool__(self) -> bool:
        """Tell whether anything is known: most of the time nothing is transferred."""
        return bool(self._nodes)

    def tell(self, node_id: str, transfers: Iterable[TransferProgress]) -> None:
        """Take in all that a node says is under way, in place of what it said before."""
        self.forget_node(node_id)
        told = {transfer.attempt_id: transfer for transfer in transfers}
        if not told:
            return
        if len(self._nodes) >= _MAX_NODES:
            del self._nodes[next(iter(self._nodes))]
        self._nodes[node_id.lower()] = told

    def forget_node(self, node_id: str) -> None:
        """Drop what a node has told: it begins anew."""
        self._nodes.pop(node_id.lower(), None)

    def forget(self, attempt_ids: Iterable[str]) -> None:
        """Drop attempts that have ended."""
        ended = frozenset(attempt_ids)
        for node_id, told in list(self._nodes.items()):
            if ended.isdisjoint(told):
                continue
            left = {attempt_id: transfer for attempt_id, transfer in told.items() if attempt_id not in ended}
            if left:
                self._nodes[node_id] = left
            else:
                del self._nodes[node_id]

    def snapshot(self) -> Mapping[str, TransferProgress]:
        """Return all that is known, by attempt id."""
        return {attempt_id: transfer for told in self._nodes.values() for attempt_id, transfer in told.items()}


def transfer_shape(transfer: TransferProgress) -> dict[str, object]:
    """Return what clients see of it."""
    wire = transfer.to_wire()
    del wire["attemptId"]
    return wire
