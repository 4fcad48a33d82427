"""Named points at which a fault test may kill the agent; silent unless `NODEAGENT_FAILPOINT=<name>` asks."""

import os
import signal

VARIABLE = "NODEAGENT_FAILPOINT"

NAMES = (
    "after_accept_commit",
    "after_directories",
    "after_spec",
    "after_launch",
    "after_exit",
    "after_outbox_commit",
    "before_post",
    "after_post_before_ack",
    "after_ack_commit",
    "after_move_aside",
    "after_bin",
    "mid_migration",
)
"""Every point of the agent, in the order in which an attempt meets them."""

_name = os.environ.get(VARIABLE, "").partition(":")[0]


def hit(name: str) -> None:
    """Kill this process with SIGKILL if the environment names this point."""
    if name == _name:
        os.kill(os.getpid(), signal.SIGKILL)
