"""Decides who may do what: a device speaks for itself alone, operators open sessions, a session admits whom it names.

In plaintext nobody is known, and everybody may do everything: `edge-coordinator serve` keeps that to loopback.
"""

import contextlib
import datetime as dt
from typing import Any

import grpc
import grpc.aio
from edgenewton.common.identity import OPERATOR_LABEL, Identity, IdentityError, Kind

from coordinator.identity.audit import AuditLog
from coordinator.identity.server_tls import ServerTls, revocation
from coordinator.session.refusal import RefusedError, Status
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings

_Context = grpc.aio.ServicerContext[Any, Any]


class AccessGate:
    """Checks the certificates of those who call.

    Args:
        tls: the coordinator's certificates; None for plaintext.
        audit: told of what is refused; None for nobody.
        allow: devices that are admitted to sessions without lists of their own.
        allow_labels: labels whose devices are, too.

    """

    def __init__(
        self,
        tls: ServerTls | None = None,
        audit: AuditLog | None = None,
        allow: tuple[str, ...] = (),
        allow_labels: tuple[str, ...] = (),
    ) -> None:
        self.tls = tls
        self.audit = audit or AuditLog(None)
        self._allow = allow
        self._allow_labels = allow_labels

    def identify(self, context: _Context) -> Identity | None:
        """Return who calls; None in plaintext.

        Raises:
            RefusedError: the certificate does not count.

        """
        if self.tls is None:
            return None
        return self.tls.identify(context.auth_context(), dt.datetime.now(dt.UTC))

    def check_device(self, context: _Context, device: str) -> Identity | None:
        """Return who calls, which must be a device.

        Raises:
            RefusedError: the certificate is another's, or does not count.

        """
        identity = self.identify(context)
        if identity is not None and (identity.kind, identity.name) != (Kind.DEVICE, device):
            raise RefusedError(
                Status.PERMISSION_DENIED,
                f"the certificate is that of {identity}; it cannot speak for device {device!r}",
            )
        return identity

    def check_operator(self, context: _Context) -> Identity | None:
        """Return who calls, which must be an operator.

        Raises:
            RefusedError: it is none, or its certificate does not count.

        """
        identity = self.identify(context)
        if identity is not None and OPERATOR_LABEL not in identity.labels:
            raise RefusedError(
                Status.PERMISSION_DENIED,
                f"{identity} may not control sessions; that takes a certificate with the label {OPERATOR_LABEL!r} "
                f"(`edge-coordinator ca issue NAME --label {OPERATOR_LABEL}`)",
            )
        return identity

    def admits(self, identity: Identity | None, settings: SessionSettings) -> bool:
        """Whether a session's lists have an identity."""
        if not settings.allow and not settings.allow_labels:
            return True
        if identity is None:
            return False
        return identity.name in settings.allow or not identity.labels.isdisjoint(settings.allow_labels)

    def check_admission(self, identity: Identity | None, session: Session) -> None:
        """Check that a device may join a session.

        Raises:
            RefusedError: it is not on the session's lists.

        """
        if not self.admits(identity, session.settings):
            raise RefusedError(
                Status.PERMISSION_DENIED, f"session {session.name!r} does not admit {identity or 'unknown devices'}"
            )

    def may_watch(self, identity: Identity | None, settings: SessionSettings) -> bool:
        """Whether somebody may see what happens in a session."""
        is_operator = identity is not None and OPERATOR_LABEL in identity.labels
        return is_operator or self.admits(identity, settings)

    def check_watcher(self, identity: Identity | None, session: Session) -> None:
        """Check that somebody may see what happens in a session.

        Raises:
            RefusedError: the session does not admit him, and he is no operator.

        """
        if not self.may_watch(identity, session.settings):
            raise RefusedError(Status.PERMISSION_DENIED, f"session {session.name!r} is not for {identity} to watch")

    def revocation(self, identity: Identity | None) -> str:
        """Return why an identity is put out; an empty text if it was not revoked."""
        if self.tls is None or identity is None or not self.tls.is_revoked(identity):
            return ""
        return revocation(identity)

    def note_refusal(self, context: _Context, error: RefusedError, session: str, device: str) -> None:
        """Write a refusal down; session and device are what the caller said."""
        identity = None
        if self.tls is not None:
            with contextlib.suppress(IdentityError):
                identity = self.tls.named_by(context.auth_context())
        self.audit.refused(error.status.name, error.reason, session, device, identity, context.peer())

    def with_defaults(self, settings: SessionSettings) -> SessionSettings:
        """Return settings of a session that is opened, with the coordinator's lists if it brings none."""
        if settings.allow or settings.allow_labels:
            return settings
        return settings.model_copy(update={"allow": self._allow, "allow_labels": self._allow_labels})

    def check_session(self, settings: SessionSettings) -> None:
        """Check that a session's lists can be kept to here.

        Raises:
            RefusedError: in plaintext nobody can show who he is.

        """
        if self.tls is None and (settings.allow or settings.allow_labels):
            raise RefusedError(
                Status.FAILED_PRECONDITION,
                "a session that admits certain devices alone needs a coordinator with certificates "
                "(`edge-coordinator serve --tls`)",
            )
