"""What an authority has issued and revoked: a small JSON file beside its key, and the one before it."""

import datetime as dt
import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from edgenewton.common import sealed_file
from edgenewton.common.files import damaged_of, previous_of, write_atomically
from edgenewton.common.identity import Identity, Kind
from edgenewton.common.sealed_file import DamagedError, OtherKindError, parse_json, read_checked, seal_json
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

log = logging.getLogger(__name__)


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
    """The entries of a file, the oldest first; where it is damaged, those of the file before it.

    Args:
        path: of the file; one that does not exist is an empty ledger.

    Raises:
        LedgerError: it cannot be read, nor the one before it.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lacks_last = False
        """Whether they are those of the file before, so that the last change is not among them."""
        try:
            self.entries = read_checked(path, sealed_file.Kind.LEDGER, _parse)
        except FileNotFoundError:
            self.entries = []
        except OSError as error:
            raise LedgerError(f"{path} cannot be read: {error.strerror or error}") from None
        except OtherKindError as error:
            raise LedgerError(f"{path} is no ledger: {error}") from None
        except DamagedError as error:
            self.entries = self._read_previous(str(error))
            self.lacks_last = True

    def _read_previous(self, damage: str) -> list[Entry]:
        previous = previous_of(self.path)
        try:
            entries = read_checked(previous, sealed_file.Kind.LEDGER, _parse)
        except (OSError, ValueError):
            raise LedgerError(
                f"{self.path} is damaged: {damage}; there is no good {previous.name} beside it: take both from a "
                "backup of the folder, or begin a new authority"
            ) from None
        log.error("%s is damaged: %s; %s is used, which lacks its last change", self.path, damage, previous)
        return entries

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

    def complete(self, known: Collection[Entry], revoked: set[str], now: dt.datetime) -> None:
        """Put back what the file before it lacks, and write the file anew; the damaged one is set aside.

        Args:
            known: certificates that were issued; those that it has already are passed over.
            revoked: serials of those that do not count.
            now: when they were revoked, where it does not know.

        """
        serials = {entry.serial for entry in self.entries}
        self.entries += [entry for entry in known if entry.serial not in serials]
        self.entries = [
            entry.model_copy(update={"revoked_at": now})
            if entry.serial in revoked and entry.revoked_at is None
            else entry
            for entry in self.entries
        ]
        # A copy: at no instant is there no ledger, which would be an empty one.
        shutil.copy2(self.path, damaged_of(self.path))
        self._save(keep_previous=False)
        self.lacks_last = False
        log.warning("%s is whole again; the damaged one is %s", self.path, damaged_of(self.path))

    def _save(self, *, keep_previous: bool = True) -> None:
        content = _Content(certificates=self.entries).model_dump(mode="json")
        data = seal_json(content, sealed_file.Kind.LEDGER, indent=1)
        write_atomically(self.path, data, mode=0o600, keep_previous=keep_previous)


def _parse(data: bytes) -> list[Entry]:
    try:
        return _Content.model_validate(parse_json(data, sealed_file.Kind.LEDGER)).certificates
    except ValidationError as error:
        raise DamagedError(error.errors()[0]["msg"]) from None
