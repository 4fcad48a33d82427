"""The notify protocol of systemd: a datagram to the socket that `NOTIFY_SOCKET` names; nothing without one."""

import os
import socket


def notify(*assignments: str) -> None:
    """Send e.g. `READY=1`. A service manager that has gone away is no reason to fail."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        try:
            sender.sendto("\n".join(assignments).encode(), address)
        except (ConnectionRefusedError, FileNotFoundError, BlockingIOError):
            return


def watchdog_seconds() -> float | None:
    """Return how often systemd wants to hear `WATCHDOG=1` from this process (half its limit), None for never."""
    limit, process = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if limit is None or (process is not None and process != str(os.getpid())):
        return None
    return int(limit) / 2_000_000
