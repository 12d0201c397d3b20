"""Who did what, and who was refused and why: one JSON object a line, in files of bounded size.

    {"time": "2026-05-04T10:11:12.345+00:00", "event": "joined", "session": "leaves", "device": "gateway-7", ...}

Each line ends with a seal (`edgenewton.common.sealed_lines`), so that damage is noticed.

Events: joined, left (with what the device contributed), unlike (what of its contribution, and what became of it),
refused, revoked, opened and ended (sessions, by operators); interrupted (so many lines before it could not be written).
"""

import datetime as dt
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgenewton.common.identity import Identity
from edgenewton.common.sealed_lines import LineFile
from edgenewton.v1 import exchange_pb2 as pb

from coordinator.identity.limits import TokenBucket

log = logging.getLogger(__name__)

MAX_BYTES = 10 << 20
"""Of a file; then it gets a number and a new one begins."""
KEPT = 5
"""So many older files are kept."""
_MAX_TEXT = 500
_REFUSALS_PER_S, _REFUSALS_AT_ONCE = 1.0, 20.0
_MAX_CALLERS = 1_000


@dataclass
class _Contributed:
    steps: int = 0
    samples: int = 0


@dataclass
class _Caller:
    """Keeps one who is refused over and over from pushing everything else out of the files."""

    bucket: TokenBucket
    unwritten: int = 0


class AuditLog:
    """Writes the events down.

    Args:
        path: of the file; None for nowhere.
        max_bytes: of a file.
        kept: how many older files are kept.

    Raises:
        OSError: the file cannot be written.

    """

    def __init__(self, path: Path | None, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        self._file = LineFile(path, max_bytes, kept) if path is not None else None
        self._unwritten = 0
        self._contributed: dict[tuple[str, str], _Contributed] = {}
        self._callers: OrderedDict[str, _Caller] = OrderedDict()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def joined(self, session: str, device: str, identity: Identity | None, peer: str) -> None:
        """Note that a device took its place."""
        self._write("joined", session=session, device=device, **_who(identity, peer))

    def refused(
        self,
        status: str,
        reason: str,
        session: str,
        device: str,
        identity: Identity | None,
        peer: str,
        now: float | None = None,
    ) -> None:
        """Note a refusal; of one caller's many in a short time, only the first are written, and the rest counted."""
        who = identity.uri if identity is not None else peer.rpartition(":")[0]
        caller = self._callers.get(who)
        now = time.monotonic() if now is None else now
        if caller is None:
            caller = self._callers[who] = _Caller(TokenBucket.full(_REFUSALS_PER_S, _REFUSALS_AT_ONCE, now))
            if len(self._callers) > _MAX_CALLERS:
                self._callers.popitem(last=False)
        self._callers.move_to_end(who)
        if not caller.bucket.take(now):
            caller.unwritten += 1
            return
        more = {"unwritten": caller.unwritten} if caller.unwritten else {}
        caller.unwritten = 0
        self._write(
            "refused", session=session, device=device, status=status, reason=reason, **_who(identity, peer), **more
        )

    def revoked(self, session: str, device: str, identity: Identity | None) -> None:
        """Note that a device loses its place because its certificate was revoked."""
        self._write("revoked", session=session, device=device, **_who(identity, ""))

    def controlled(self, event: str, session: str, reason: str, identity: Identity | None, peer: str) -> None:
        """Note that an operator opened or ended a session."""
        self._write(event, session=session, reason=reason, **_who(identity, peer))

    def apply(self, event: pb.SessionEvent) -> None:
        """Note what happened in a session: what devices contribute is added up until they leave."""
        if self._file is None:
            return
        match event.WhichOneof("event"):
            case "report":
                contributed = self._contributed.setdefault((event.session, event.report.device), _Contributed())
                contributed.steps += 1
                contributed.samples += event.report.samples
            case "unlike":
                self._unlike(event.session, event.unlike)
            case "left":
                left = event.left
                contributed = self._contributed.pop((event.session, left.device), _Contributed())
                self._write(
                    "left",
                    session=event.session,
                    device=left.device,
                    status=left.status or "OK",
                    reason=left.reason,
                    steps=contributed.steps,
                    samples=contributed.samples,
                    bytes_received=left.bytes_received,
                    bytes_sent=left.bytes_sent,
                )

    def _unlike(self, session: str, unlike: pb.DeviceUnlike) -> None:
        told = {"device": unlike.device, "step": unlike.step, "reason": unlike.reason, "times": unlike.times}
        self._write("unlike", session=session, **told)

    def _write(self, event: str, **fields: object) -> None:
        """Write a line. A full disk is said in the log, and stops nobody from training."""
        if self._file is None:
            return
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        values = {name: value[:_MAX_TEXT] if isinstance(value, str) else value for name, value in fields.items()}
        gap = {"time": now, "event": "interrupted", "unwritten": self._unwritten}
        try:
            self._file.write(*([gap] if self._unwritten else []), {"time": now, "event": event, **values})
        except OSError as error:
            if not self._unwritten:
                cause = error.strerror or error
                log.error("the audit log %s cannot be written: %s; sessions go on", self._file.path, cause)
            self._unwritten += 1
        else:
            if self._unwritten:
                log.warning("%s is written again; %d lines are lost", self._file.path, self._unwritten)
                self._unwritten = 0


def _who(identity: Identity | None, peer: str) -> dict[str, Any]:
    address: dict[str, Any] = {"peer": peer} if peer else {}
    if identity is None:
        return address
    return {**address, "identity": identity.uri, "serial": f"{identity.serial:x}", "labels": sorted(identity.labels)}
