"""Starting the task's first process, and telling exactly why it could not be started.

Two ways. As the shim's own user: the shim puts on the task's directory, limits and cgroup, calls `posix_spawn` (which
does not copy the address space) and takes them off again; the child is born inside. As another user, or under limits: a
plain `fork`, because privileges have to be dropped between fork and exec, and no shim should be found in a cgroup in
which the kernel may kill or throttle; cheap enough while the shim is small.
"""

# ruff: noqa: PTH112, PTH113, PTH118, PTH123
# plain strings: a shim is kept small and fast, and pathlib is neither

import errno
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

from nodeagent.shim import kernel
from nodeagent.shim.records import ExecError, Spec

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that the shim ignores (a unit that is stopped signals all its processes) and that a task must not."""


_ELF_MACHINES = {3: "i386", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}
"""What e_machine of an ELF header means (elf.h), for those one meets."""

_ABSENT = (errno.ENOENT, errno.ENOTDIR)


class ExecFailed(Exception):  # noqa: N818 - named like the Step it comes from
    """The command could not be started; `.error` is the record of why."""

    def __init__(self, error: ExecError) -> None:
        super().__init__(f"{error.step}: {error.path}: {error.strerror}")
        self.error = error


class Step(Exception):  # noqa: N818 - not an error by itself: it names the step at which an OSError came
    """An OSError together with what was being done, to what."""

    def __init__(self, step: str, path: str, error: OSError) -> None:
        super().__init__(step, path, error.errno)
        self.step, self.path, self.number = step, path, error.errno or 0


@contextmanager
def step(name: str, path: str) -> Iterator[None]:
    """Give an OSError from within the name of the step."""
    try:
        yield
    except OSError as error:
        raise Step(name, path, error) from error


def spawn(spec: Spec, output: int, errors: int) -> int:
    """Start the command with these two files as stdout and stderr; its pid. Raises ExecFailed."""
    try:
        if _is_somebody_else(spec) or kernel.is_limited(spec.boundary):
            return _fork_as_user(spec, output, errors)
        return _spawn_as_self(spec, output, errors)
    except Step as failed:
        raise ExecFailed(_exec_error(spec, failed.step, failed.path, failed.number)) from failed


def open_output(path: str, name: str, spec: Spec) -> int:
    """Create an output file of the task, owned by its user. Raises ExecFailed with step `name`.

    Opened for appending, so that stdout and stderr may be one file; not with a cap, which writes at offsets. The
    directory is the user's, who may have put a link to somebody else's file there: that one is left alone.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    user = spec.user if _is_somebody_else(spec) else None
    if spec.output_cap is None:
        flags |= os.O_APPEND
    if user is None:
        flags |= os.O_TRUNC
    try:
        with step(name, path):
            file = os.open(path, flags, 0o644)
            if user is not None:
                if os.fstat(file).st_nlink > 1:
                    raise OSError(errno.EMLINK, "")
                os.ftruncate(file, 0)
                os.fchown(file, user.uid, user.gid)
            return file
    except Step as failed:
        raise ExecFailed(_exec_error(spec, failed.step, failed.path, failed.number)) from failed


def environment(spec: Spec) -> dict[str, str]:
    """The task's environment: the spec's and the two markers by which a sweep finds a process again."""
    return {
        **spec.env,
        kernel.ATTEMPT_VARIABLE: spec.attempt_id,
        kernel.BOUNDARY_VARIABLE: spec.boundary["marker"],
    }


def _is_somebody_else(spec: Spec) -> bool:
    user = spec.user
    return user is not None and (
        (user.uid, user.gid) != (os.geteuid(), os.getegid()) or set(user.groups) != set(os.getgroups())
    )


def _candidates(spec: Spec) -> list[str]:
    """What to try to execute, in order. A bare name is looked up in the task's PATH (spec/node.md §3)."""
    program = spec.argv[0]
    if "/" in program:
        return [program]
    path = spec.env.get("PATH", os.defpath)
    return [os.path.join(directory or ".", program) for directory in path.split(":")]


def _spawn_as_self(spec: Spec, output: int, errors: int) -> int:
    with ExitStack() as dressed:
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        dressed.callback(os.close, null)
        with step("chdir", spec.cwd):
            os.chdir(spec.cwd)
        dressed.callback(os.chdir, "/")
        for number, before in _limit(spec):
            dressed.callback(resource.setrlimit, number, before)
        dressed.enter_context(_inside(spec.boundary))
        files = [
            (os.POSIX_SPAWN_DUP2, null, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, errors, 2),
        ]

        def start(path: str) -> int:
            return os.posix_spawn(
                path,
                spec.argv,
                environment(spec),
                file_actions=files,
                setsid=True,
                setsigmask=(),
                setsigdef=IGNORED,
            )

        return _first_that_runs(spec, start)


def _fork_as_user(spec: Spec, output: int, errors: int) -> int:
    answer, tell = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
        if pid == 0:
            _become_task(spec, output, errors, tell)
    finally:
        os.close(tell)
    with open(answer, "rb") as pipe:
        failure = pipe.read()
    if failure:
        os.waitpid(pid, 0)
        name, path, number = json.loads(failure)
        raise Step(name, path, OSError(number, os.strerror(number)))
    return pid


def _become_task(spec: Spec, output: int, errors: int, tell: int) -> NoReturn:
    """In the forked child: put on everything for good, exec, or tell why not. Never returns."""
    failure = ["fork", spec.argv[0], errno.EIO]
    try:
        os.setsid()
        with step("boundary", spec.boundary.get("path", "")):
            if "path" in spec.boundary:
                kernel.enter(spec.boundary["path"])
            for path in kernel.limiting_cgroups(spec.boundary):
                kernel.enter(path)
        _limit(spec)
        with step("stdio", "/dev/null"):
            for source, target in ((os.open("/dev/null", os.O_RDONLY), 0), (output, 1), (errors, 2)):
                os.dup2(source, target)
        if spec.user is not None:
            with step("user", str(spec.user.uid)):
                os.setgroups(spec.user.groups)
                os.setresgid(spec.user.gid, spec.user.gid, spec.user.gid)
                os.setresuid(spec.user.uid, spec.user.uid, spec.user.uid)
        with step("chdir", spec.cwd):
            os.chdir(spec.cwd)
        for number in IGNORED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _first_that_runs(spec, lambda path: os.execve(path, spec.argv, environment(spec)))  # noqa: S606 - a task's command line is not run by a shell (spec/node.md §3)
    except Step as failed:
        failure = [failed.step, failed.path, failed.number]
    finally:
        # also on what nobody expected: a forked shim must never get past this line
        os.write(tell, json.dumps(failure).encode())
        os._exit(127)


def _first_that_runs(spec: Spec, start: Callable[[str], int]) -> int:
    """Try one candidate after the other as execvp does: what is not there is passed over, what is refused is kept.

    Raises Step("exec") with the most telling error.
    """
    candidates = _candidates(spec)
    worst = Step("exec", spec.argv[0], OSError(errno.ENOENT, ""))
    for path in candidates:
        if len(candidates) > 1 and not os.access(path, os.F_OK):
            continue  # saves a vfork for each directory of PATH
        try:
            return start(path)
        except OSError as error:
            if error.errno != errno.EACCES and error.errno not in _ABSENT:
                raise Step("exec", path, error) from error
            if worst.number != errno.EACCES:  # a refusal tells more than an absence
                worst = Step("exec", path, error)
    raise worst


def _limit(spec: Spec) -> list[tuple[int, tuple[int, int]]]:
    """Set the soft limits of this process; what they were before."""
    before = []
    for name, value in spec.limits.items():
        with step("limits", name):
            number = getattr(resource, f"RLIMIT_{name.upper()}", None)
            if number is None:
                raise OSError(errno.EINVAL, "no such limit")
            limits = resource.getrlimit(number)
            hard = limits[1]
            soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (soft, hard))
            before.append((number, limits))
    return before


@contextmanager
def _inside(boundary: kernel.Boundary) -> Iterator[None]:
    """Be in the task's cgroup for a moment, so that a child is born there.

    The way home is opened before: a shim that could not leave would be killed with the task. Should the way back
    fail all the same, the OSError ends the shim and the attempt is lost, but swept.
    """
    if "path" not in boundary:
        yield
        return
    with step("boundary", boundary["path"]):
        home = os.open(f"{boundary['home']}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        with step("boundary", boundary["path"]):
            kernel.enter(boundary["path"])
        try:
            yield
        finally:
            os.write(home, b"0")
    finally:
        os.close(home)


def _exec_error(spec: Spec, name: str, path: str, number: int) -> ExecError:
    return ExecError(
        errno=number,
        strerror=os.strerror(number),
        step=name,
        path=path,
        cwd=spec.cwd,
        user=spec.user.uid if spec.user else None,
        hint=_hint(spec, name, os.path.join(spec.cwd, path), number),
    )


def _hint(spec: Spec, name: str, path: str, number: int) -> str:
    """One sentence for the person who wrote the command line."""
    if name != "exec":
        return {
            "chdir": "the working directory is missing or its user may not enter it",
            "user": "only a root-owned agent can run tasks as another user",
            "limits": "limits are named after their RLIMIT_ constant, in lower case",
        }.get(name, "")
    if number in _ABSENT:
        return _hint_absent(spec, path)
    if number == errno.EACCES and os.path.isdir(path):
        return "this is a directory"
    if number == errno.ENOEXEC:
        return _hint_format(path)
    return {
        errno.EACCES: "the file is not executable for this user, or lies on a file system mounted noexec",
        errno.E2BIG: "the command line and the environment together are longer than this system allows",
    }.get(number, "")


def _hint_format(path: str) -> str:
    """The kernel knows no way to run the file: a program for another machine says so in its header."""
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError:
        head = b""
    if len(head) < 20 or not head.startswith(b"\x7fELF"):
        return "neither a program for this machine nor a script that begins with #!"
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    built_for = _ELF_MACHINES.get(number, f"ELF machine {number}")
    return f"a program for {built_for}, and this machine is {os.uname().machine}"


def _hint_absent(spec: Spec, path: str) -> str:
    if os.path.isfile(path):
        with open(path, "rb") as file:
            first = file.readline(256)
        if first.startswith(b"#!"):
            named = first[2:].decode(errors="replace").split()
            return f"its interpreter {named[0] if named else ''} does not exist"
        return "its dynamic loader does not exist"
    if "/" in spec.argv[0]:
        return "there is no such file; relative paths start at the working directory"
    return f"not found in PATH={spec.env.get('PATH', os.defpath)}"
