"""The daemon's side of the process that trains: starts it, hands it one job at a time, and ends what must end."""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from multiprocessing.connection import Connection
from typing import TypeVar

from edge_client.daemon.messages import Failed, Job, Published, Result, Start
from edge_client.training.work import TrainedStep

ResultT = TypeVar("ResultT")

log = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """Another job is on."""


class JobError(RuntimeError):
    """A job failed; the text says why."""


class SessionAbortedError(JobError):
    """The session was ended for all devices; the text says why."""


class TrainerDiedError(JobError):
    """The process that trains has died; the next job gets another."""


class TrainerHost:
    """Runs jobs in a process of their own, which is started when it is first needed, and again if it has died."""

    def __init__(self, start: Start, stop_deadline_s: float) -> None:
        self._start = start
        self._stop_deadline_s = stop_deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._is_busy = False

    async def run(self, job: Job) -> AsyncGenerator[TrainedStep | Published | Result, None]:
        """Yield a job's steps and what it publishes, and its result at last. Who stops iterating ends the job.

        Raises:
            BusyError: another job is on.
            JobError: the job failed.
            SessionAbortedError: the session was ended for all devices.
            TrainerDiedError: the process that trains has died.

        """
        if self._is_busy:
            raise BusyError("this device trains already; try again when it is done")
        self._is_busy = True
        is_over = False
        try:
            connection = await asyncio.to_thread(self._connect)
            await asyncio.to_thread(connection.send, job)
            while not is_over:
                message = await self._receive(connection)
                is_over = not isinstance(message, TrainedStep | Published)
                if isinstance(message, Failed):
                    raise (SessionAbortedError if message.is_abort else JobError)(message.reason)
                yield message
        except (EOFError, OSError):
            code = await asyncio.to_thread(self._end)
            is_over = True
            raise TrainerDiedError(
                f"the process that trains has died (exit status {code}); it is started anew"
            ) from None
        finally:
            if not is_over:
                # The process interrupts the job when its socket closes; the next job takes a new process.
                await asyncio.shield(asyncio.to_thread(self._end))
            self._is_busy = False

    async def result(self, job: Job, kind: type[ResultT]) -> ResultT:
        """Return a job's result, which is of a kind.

        Raises:
            BusyError, JobError: as `run`.

        """
        async with aclosing(self.run(job)) as messages:
            async for message in messages:
                if isinstance(message, kind):
                    return message
        raise JobError("the process that trains has given no result")

    async def stop(self) -> None:
        """End the process; a job that is on is interrupted."""
        await asyncio.to_thread(self._end)

    async def _receive(self, connection: Connection) -> TrainedStep | Published | Result:
        # The thread ends when the process answers or dies, also after this was cancelled.
        waiting = asyncio.ensure_future(asyncio.to_thread(connection.recv))
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        message: TrainedStep | Published | Result = await asyncio.shield(waiting)
        return message

    def _connect(self) -> Connection:
        if self._process is not None and self._process.poll() is None and self._connection is not None:
            return self._connection
        self._end()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edge_client.daemon.trainer_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Signals of the terminal are the daemon's to handle.
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())
        self._connection.send(self._start)
        log.info("process %d trains", self._process.pid)
        return self._connection

    def _end(self) -> int | None:
        """End the process: it ends by itself when its socket closes, or is killed at the deadline."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            # Closing alone would not wake a thread that reads from it.
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)
            connection.close()
        if process is None:
            return None
        try:
            return process.wait(self._stop_deadline_s)
        except subprocess.TimeoutExpired:
            log.warning("the process that trains did not stop within %g s; it is killed", self._stop_deadline_s)
            process.kill()
            return process.wait(self._stop_deadline_s)
