"""The process runtime: attempts run under shims, which outlive this program."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from nodeagent.runtime import evidence
from nodeagent.runtime.base import (
    Ended,
    LaunchError,
    LaunchUnknown,
    Lost,
    LostCandidate,
    NeverStarted,
    Running,
    RuntimeFailure,
    Seen,
)
from nodeagent.runtime.shims import Shim, Zygote
from nodeagent.shim import kernel, records

_TRIES = 3


class _Flight:
    """An attempt that this agent watches: `held` gets the shim's answer to a launch, `outcome` its end."""

    def __init__(self, attempt_id: str) -> None:
        loop = asyncio.get_running_loop()
        self.attempt_id = attempt_id
        self.held: asyncio.Future[tuple[str, str]] = loop.create_future()
        self.outcome: asyncio.Future[Ended | Lost] = loop.create_future()

    def answer(self, word: str, text: str = "") -> None:
        if not self.held.done():
            self.held.set_result((word, text))

    def end(self, outcome: Ended | Lost) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def fail(self, error: RuntimeFailure) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)
            self.outcome.exception()  # who waits gets it; without anybody waiting it is no event


class ProcessRuntime:
    """Runs attempts through a zygote and a pool of warm shims. See `Runtime` for its methods.

    Each shim serves one attempt at a time. A launch goes to an idle shim or to a new one; a shim's end-of-file tells
    its death, so no attempt of this life has to be polled. Attempts of earlier lives are watched by a pidfd of their
    shim, which exits after its attempt because its agent is gone.
    """

    def __init__(self, state_dir: Path, *, warm: int = 1, launch_seconds: float = 30.0) -> None:
        """`warm` is the number of idle shims to keep (slots); `launch_seconds` how long a shim may take to answer."""
        self.attempts = state_dir / "attempts"
        self._zygote = Zygote(self.attempts, state_dir / "shim.log")
        self._warm = warm
        self._launch_seconds = launch_seconds
        self._idle: list[Shim] = []
        self._busy: dict[Shim, _Flight] = {}
        self._flights: dict[str, _Flight] = {}
        self._watched: dict[int, _Flight] = {}
        self._settling: set[asyncio.Task[None]] = set()

    @property
    def zygote_pid(self) -> int | None:
        """The pid of the zygote, once started."""
        return self._zygote.pid

    async def open(self) -> None:
        """Start the zygote and the warm shims. Raises RuntimeFailure."""
        self.attempts.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(self._warm):
            self._idle.append(Shim(self._zygote, self._hear))

    async def close(self) -> None:
        """See Runtime.close."""
        for shim in (*self._idle, *self._busy):
            shim.close()
        for handle in self._watched:
            asyncio.get_running_loop().remove_reader(handle)
            os.close(handle)
        self._idle.clear()
        self._busy.clear()
        self._watched.clear()
        await asyncio.gather(*self._settling)
        for flight in self._flights.values():
            flight.answer("closed", "the runtime was closed before a shim answered")
            flight.fail(RuntimeFailure("the runtime was closed; what runs goes on"))
        self._flights.clear()
        await self._zygote.close()

    async def launch(self, attempt_id: str) -> None:
        """See Runtime.launch."""
        if attempt_id in self._flights:
            raise LaunchUnknown(f"{attempt_id} is being run already")
        flight = self._flights[attempt_id] = _Flight(attempt_id)
        for _ in range(_TRIES):
            word, text = await self._ask(flight)
            if word == "held":
                return
            if word != "gone":
                break
            flight.held = asyncio.get_running_loop().create_future()  # that shim is dead and had not begun: next one
        self._flights.pop(attempt_id, None)
        if word == "gone":
            text = f"{_TRIES} shims died before they took it, see shim.log"
        error = (LaunchError if word in ("refused", "gone") else LaunchUnknown)(f"{attempt_id}: {text}")
        flight.fail(error)
        raise error

    async def wait(self, attempt_id: str) -> Ended | Lost:
        """See Runtime.wait. Raises RuntimeFailure if the attempt cannot be settled or the runtime is closed."""
        if attempt_id not in self._flights:
            seen = self.look(attempt_id)
            match seen:
                case Ended() | Lost():
                    return seen
                case Running():
                    await self.adopt(attempt_id)
                case LostCandidate() | NeverStarted():
                    return await self.resolve_lost(attempt_id)
        flight = self._flights.get(attempt_id)
        if flight is None:
            return await self.resolve_lost(attempt_id)
        return await asyncio.shield(flight.outcome)

    async def stop(self, attempt_id: str, reason: str, grace: float) -> None:
        """See Runtime.stop."""
        directory = self._directory(attempt_id)
        evidence.request_stop(directory, reason, grace)
        # either the shim, which looks for stop.json after it wrote shim.json, sees the request, or we see shim.json
        shim = evidence.holder(directory)
        if shim is not None:
            kernel.send(*shim, signal.SIGUSR1)

    def look(self, attempt_id: str) -> Seen:
        """See Runtime.look. Raises RecordError for a damaged shim.json."""
        return evidence.look(self._directory(attempt_id))

    async def resolve_lost(self, attempt_id: str) -> Ended | Lost:
        """See Runtime.resolve_lost."""
        return await asyncio.to_thread(evidence.settle, self._directory(attempt_id), attempt_id)

    async def adopt(self, attempt_id: str) -> None:
        """See Runtime.adopt."""
        if attempt_id in self._flights:
            return
        flight = self._flights[attempt_id] = _Flight(attempt_id)
        shim = evidence.holder(self._directory(attempt_id))
        handle = kernel.open_process(*shim) if shim else None
        if handle is None:
            self._settle(flight)
            return
        self._watched[handle] = flight
        asyncio.get_running_loop().add_reader(handle, self._adopted_ended, handle)
        # Its death is what we watch, so it must not take another attempt, should its agent be alive after all. It
        # looks for this signal after it let go of the lock: if it still holds it now, it will see the signal.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGUSR2)
        if not isinstance(self.look(attempt_id), Running):
            self._adopted_ended(handle)

    def _directory(self, attempt_id: str) -> str:
        return f"{self.attempts}/{attempt_id}"

    async def _ask(self, flight: _Flight) -> tuple[str, str]:
        """Give the attempt to a shim; its answer. Raises LaunchError or LaunchUnknown."""
        try:
            shim = self._idle.pop() if self._idle else Shim(self._zygote, self._hear)
        except RuntimeFailure as error:
            del self._flights[flight.attempt_id]
            raise LaunchError(str(error)) from error
        self._busy[shim] = flight
        shim.give(flight.attempt_id)
        try:
            async with asyncio.timeout(self._launch_seconds):
                return await asyncio.shield(flight.held)
        except TimeoutError as error:
            raise LaunchUnknown(f"{flight.attempt_id}: no answer in {self._launch_seconds} s") from error

    def _hear(self, shim: Shim, word: str, text: str) -> None:
        """What a shim tells (shim/zygote.py)."""
        if word == "held":
            self._busy[shim].answer(word)
            return
        flight = self._busy.pop(shim, None)
        if word in ("gone", "retired"):
            shim.close()
            if shim in self._idle:
                self._idle.remove(shim)
        elif len(self._idle) < self._warm:
            self._idle.append(shim)
        else:
            shim.close()
        if flight is None:
            return
        if word in ("ended", "retired"):
            self._ended(flight)
        elif word == "gone" and records.exists(self._directory(flight.attempt_id), records.ShimRecord.FILE):
            flight.answer("held")
            self._settle(flight)
        else:
            flight.answer(word, text)

    def _ended(self, flight: _Flight) -> None:
        try:
            outcome = evidence.recorded(self._directory(flight.attempt_id))
        except records.RecordError:
            outcome = None  # settling says what is damaged
        if outcome is None:
            self._settle(flight)
        else:
            self._flights.pop(flight.attempt_id, None)
            flight.end(outcome)

    def _adopted_ended(self, handle: int) -> None:
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)
        self._settle(self._watched.pop(handle))

    def _settle(self, flight: _Flight) -> None:
        """The shim is gone: find out in a thread, which may have to sweep, and tell who waits."""
        task = asyncio.get_running_loop().create_task(self._settled(flight))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settled(self, flight: _Flight) -> None:
        try:
            flight.end(await self.resolve_lost(flight.attempt_id))
        except (RuntimeFailure, records.RecordError, OSError) as error:
            flight.fail(error if isinstance(error, RuntimeFailure) else RuntimeFailure(str(error)))
        finally:
            self._flights.pop(flight.attempt_id, None)
