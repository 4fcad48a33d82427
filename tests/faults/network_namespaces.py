"""Several machines on one: network namespaces on a bridge, each with its own address and its own link to pull.

They share the kernel, the files and the process table of the test; only the network is theirs.
"""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_numbers = itertools.count(1)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@dataclass(frozen=True, slots=True)
class Machine:
    """A network namespace with one link to the others."""

    name: str
    address: str
    link: str
    """The bridge's end of its cable."""

    def cut(self) -> None:
        """Pull the cable: nothing is refused, packets are simply gone."""
        _ip("link", "set", self.link, "down")

    def connect(self) -> None:
        """Plug the cable in again."""
        _ip("link", "set", self.link, "up")

    def start(self, *arguments: str, log: Path, environment: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Run `nodeagent` with these arguments on the machine, in a session of its own."""
        with log.open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, sys.executable, "-m", "nodeagent", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | (environment or {}),
                start_new_session=True,
            )

    def processes(self) -> list[int]:
        """Return the processes that are in the namespace."""
        found = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, timeout=30, check=False
        ).stdout
        return [int(pid) for pid in found.split()]

    def kill_everything(self) -> None:
        """End every process of the machine at once, as a power cut does."""
        for _ in range(100):
            pids = self.processes()
            if not pids:
                return
            for pid in pids:
                with _gone_is_fine():
                    os.kill(pid, signal.SIGKILL)
        raise RuntimeError(f"processes of {self.name} will not die: {pids}")


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except ProcessLookupError:
        return


@dataclass(frozen=True, slots=True)
class Network:
    """A bridge in the test's own namespace, where the service lives, and the machines on it."""

    address: str
    machines: tuple[Machine, ...]


@contextmanager
def network(machines: int) -> Iterator[Network]:
    """Make so many machines. Needs root and iproute2. What runs on them is killed at the end."""
    tag = f"{os.getpid() % 100_000:x}{next(_numbers)}"
    subnet = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 200}"
    bridge = f"nab{tag}"
    with ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        made = tuple(_machine(stack, bridge, tag, subnet, number) for number in range(1, machines + 1))
        yield Network(f"{subnet}.1", made)


def _machine(stack: ExitStack, bridge: str, tag: str, subnet: str, number: int) -> Machine:
    name, link = f"nam{tag}-{number}", f"nal{tag}-{number}"
    machine = Machine(name, f"{subnet}.{number + 10}", link)
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "del", name)
    stack.callback(machine.kill_everything)
    _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", link, "master", bridge)
    for arguments in (("addr", "add", f"{machine.address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
        _ip("-n", name, *arguments)
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("link", "set", link, "up")
    return machine
