"""What an authority has issued and revoked: a small JSON file beside its key."""

import datetime as dt
from pathlib import Path

from edgenewton.common.files import write_atomically
from edgenewton.common.identity import Identity, Kind
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError


class LedgerError(RuntimeError):
    """The ledger cannot be used; the text names the file and says why."""


class Entry(BaseModel):
    """One certificate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    serial: str
    """Hexadecimal, as tools print it."""
    kind: Kind
    name: str
    labels: tuple[str, ...] = ()
    not_before: AwareDatetime
    not_after: AwareDatetime
    revoked_at: AwareDatetime | None = None

    @classmethod
    def of(cls, identity: Identity) -> "Entry":
        """Return the entry of a certificate that is about to be issued."""
        return cls(
            serial=f"{identity.serial:x}",
            kind=identity.kind,
            name=identity.name,
            labels=tuple(sorted(identity.labels)),
            not_before=identity.not_before,
            not_after=identity.not_after,
        )

    def state(self, now: dt.datetime) -> str:
        """Return valid, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if now > self.not_after else "valid"


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    certificates: list[Entry] = []


class Ledger:
    """The entries of a file, the oldest first.

    Args:
        path: of the file; one that does not exist is an empty ledger.

    Raises:
        LedgerError: it cannot be read.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.entries = _Content.model_validate_json(path.read_bytes()).certificates if path.exists() else []
        except OSError as error:
            raise LedgerError(f"{path} cannot be read: {error.strerror or error}") from None
        except ValidationError as error:
            raise LedgerError(f"{path} is damaged: {error.errors()[0]['msg']}") from None

    def add(self, entry: Entry) -> None:
        """Write a certificate down."""
        self.entries.append(entry)
        self._save()

    def revoke(self, serials: set[str], now: dt.datetime) -> None:
        """Note that certificates no longer count."""
        self.entries = [
            entry.model_copy(update={"revoked_at": now}) if entry.serial in serials else entry for entry in self.entries
        ]
        self._save()

    def _save(self) -> None:
        content = _Content(certificates=self.entries).model_dump_json(indent=1)
        write_atomically(self.path, content.encode(), mode=0o600)
