"""What was revoked lately: the snapshot that a handshake asks without any I/O.

The database is the truth. A session's row is read once at the door; this snapshot
covers the time between that read and the moment the connection is registered, and
what another process has ended since a cached read.
"""

from __future__ import annotations

__all__ = ["RevocationSnapshot"]


class RevocationSnapshot:
    """Sessions and subjects that were revoked, for as long as a token may live."""

    def __init__(self) -> None:
        self._sessions: dict[str, float] = {}
        self._subjects: dict[str, float] = {}

    def revoke_session(self, session: str, at: float) -> None:
        """Remember that a session has ended."""
        self._sessions[session] = at

    def revoke_subject(self, subject: str, at: float) -> None:
        """Remember that every session a subject opened up to ``at`` has ended."""
        self._subjects[subject] = max(at, self._subjects.get(subject, at))

    def covers(self, session: str, subject: str, created_at: float) -> bool:
        """Tell whether a session opened at ``created_at`` was revoked."""
        if session in self._sessions:
            return True
        revoked_at = self._subjects.get(subject)
        return revoked_at is not None and created_at <= revoked_at

    def forget_before(self, at: float) -> None:
        """Drop what is older than any token can be."""
        for known in (self._sessions, self._subjects):
            for key in [key for key, revoked_at in known.items() if revoked_at < at]:
                del known[key]

    def __len__(self) -> int:
        return len(self._sessions) + len(self._subjects)
