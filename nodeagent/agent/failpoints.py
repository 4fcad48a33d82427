"""Named points at which a fault test may kill the agent; silent unless `NODEAGENT_FAILPOINT=<name>` asks."""

import os
import signal

VARIABLE = "NODEAGENT_FAILPOINT"

NAMES = (
    "after_accept_commit",
    "after_directories",
    "after_spec",
    "after_transfer_in",
    "after_launch",
    "after_exit_seen",
    "after_transfer_out",
    "after_outbox_commit",
    "before_post",
    "after_post_before_ack",
    "after_ack_commit",
    "after_move_aside",
    "after_account_commit",
    "after_account_close",
    "after_bin",
    "after_hold_for_disk",
    "after_package_download",
    "after_package_unpack",
    "after_package_rename",
    "after_package_commit",
    "after_upload_plan",
    "after_upload_begun",
    "after_upload_block",
    "before_upload_commit",
    "after_upload_commit",
    "after_node_command_commit",
    "after_node_command_begun",
    "after_node_command_ended",
    "before_node_command_done",
    "after_node_command_done",
    "mid_migration",
)
"""Every point of the agent. Shims inherit the environment: no name is one of theirs (nodeagent/shim)."""

_name = os.environ.get(VARIABLE, "").partition(":")[0]


def hit(name: str) -> None:
    """Kill this process with SIGKILL if the environment names this point."""
    if name == _name:
        os.kill(os.getpid(), signal.SIGKILL)
