"""The queues of numbered messages to the nodes."""

from nodeagent.model.protocol import NodeMessage
from nodeagent.service.store.database import Transaction

PAGE = 256


def node_signal(node_num: int) -> str:
    """Return the signal that tells of new messages for a node."""
    return f"node:{node_num}"


def add(tx: Transaction, node_num: int, message: NodeMessage) -> int:
    """Queue a message for a node and wake its long poll; return the message's number."""
    rows = tx.execute(
        "INSERT INTO messages (node_num, body) VALUES (?, ?) RETURNING number", (node_num, message.to_json())
    )
    tx.signal(node_signal(node_num))
    return int(rows[0][0])


def after(tx: Transaction, node_num: int, cursor: int, limit: int = PAGE) -> list[tuple[int, str]]:
    """Return (number, JSON body) of the messages after a cursor, oldest first."""
    return [
        (row[0], row[1])
        for row in tx.execute(
            "SELECT number, body FROM messages WHERE node_num = ? AND number > ? ORDER BY number LIMIT ?",
            (node_num, cursor, limit),
        )
    ]


def acknowledge(tx: Transaction, node_num: int, cursor: int) -> None:
    """Forget the messages that a node has committed."""
    tx.execute("DELETE FROM messages WHERE node_num = ? AND number <= ?", (node_num, cursor))


def forget(tx: Transaction, node_num: int) -> None:
    """Empty a node's queue: what was meant for its former life would be done by the new one, which knows nothing."""
    tx.execute("DELETE FROM messages WHERE node_num = ?", (node_num,))


def withdraw(tx: Transaction, number: int) -> None:
    """Take a message back, in case its node has not fetched it."""
    tx.execute("DELETE FROM messages WHERE number = ?", (number,))
