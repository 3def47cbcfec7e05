"""The first message from the attacher to the recorder: everything it needs to begin."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from gpuaudit.bundle.errors import AuditError
from gpuaudit.capture.channel import Message
from gpuaudit.capture.ring import RingDescription


@dataclass(frozen=True)
class StartMessage:
    """``capabilities`` are the attacher's sources; the recorder adds its own (NVML, clock) before leaf 0 is written.

    ``uid`` and ``gid`` None: the recorder keeps its user. ``counters_fd`` −1: no rings; ``dial_fd`` and
    ``files_fd`` −1: no engines. ``public_key`` is the identity's, hex. ``site_policy``: the artefact of a
    capture that obeyed one.
    """

    site: str
    host_id: str
    capture_uuid: str
    challenge: str
    public_key: str
    open_body: dict[str, Any]
    sources: list[str]
    capabilities: list[dict[str, Any]]
    gpus: list[dict[str, Any]]
    rings: list[RingDescription]
    counters_fd: int
    dial_fd: int
    files_fd: int
    synthetic: str | None
    seed: int
    uid: int | None
    gid: int | None
    site_policy: dict[str, Any] | None = None

    def to_message(self) -> dict[str, Any]:
        """The body of the ``start`` message."""
        return asdict(self)

    @classmethod
    def from_message(cls, message: Message) -> StartMessage:
        """The inverse; AuditError when a field is missing, which only a defect can cause."""
        body = {k: v for k, v in message.items() if k != "type"}
        names = {f.name for f in fields(cls)}
        if set(body) != names:
            raise AuditError(f"start message has fields {sorted(body)}, expected {sorted(names)}")
        return cls(**{**body, "rings": [RingDescription(**r) for r in body["rings"]]})
