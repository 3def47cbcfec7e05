"""The attacher of one capture: starts the recorder, watches until the end, and publishes the sealed bundle."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from gpuaudit.bundle.errors import EXIT_ENVIRONMENT, AuditError, HostUnfit
from gpuaudit.bundle.note import Signer
from gpuaudit.capture import processes
from gpuaudit.capture.attacher_rights import limit_while_running, namespace_desk
from gpuaudit.capture.channel import TO_ATTACHER, Channel, ChannelBroken, Message
from gpuaudit.capture.child import END_SIGNALS, child_command, child_environment, end_signals_blocked
from gpuaudit.capture.cost import usage_rows
from gpuaudit.capture.engine_desk import EngineDesk
from gpuaudit.capture.engine_endpoint import Endpoint
from gpuaudit.capture.launch import Command, InvokingUser, Limits, Workload, typed_at_terminal
from gpuaudit.capture.options import DEFAULT_DURATION_S, CaptureOptions, CaptureResult, EndedBy, Status
from gpuaudit.capture.output import Output
from gpuaudit.capture.privileges import Credentials
from gpuaudit.capture.probing import Probing
from gpuaudit.capture.scenario import Scenario
from gpuaudit.capture.signing import SigningDesk
from gpuaudit.capture.start import StartMessage

RECEIPT_DEADLINE_S = 60.0
SEAL_DEADLINE_S = 300.0
"""A slow disk may need minutes to seal what a full memory holds; a recorder that hangs must still end."""

RECORDER_EXIT_S = 10.0
WORKLOAD_GRACE_S = 10.0
"""After SIGINT or SIGTERM the workload has this long to end by itself before the capture ends without it."""

TURN_S = 0.05
WAKE_PAUSE_S = 0.005
"""What the kernel tells of in this time after the first event is looked at together with it: on a host where programs
start all the time, the events wake this process 200 times a second at most. ours"""


@dataclass(frozen=True)
class Plan:
    """Everything that was decided before anything was made."""

    options: CaptureOptions
    output: Output
    identity: Signer
    recorder: Credentials | None
    command: Command | None
    user: InvokingUser | None
    limits: Limits
    host_facts: dict[str, object]
    open_body: dict[str, object]
    scenario: Scenario | None
    capture_uuid: str
    tell: Callable[[Status], None]
    engines: list[tuple[Endpoint, str]]
    """Those the user named, their names resolved once and for all."""
    own_process: bool = False
    """Whether this process may give up its capabilities for good: see :func:`gpuaudit.capture.session.run_capture`."""


class Attacher:
    """One capture; :meth:`run` is called once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        origin = f"{plan.options.site}/{plan.host_facts['host_id']}/{plan.capture_uuid}"
        self._origin = origin
        self._desk = SigningDesk(plan.identity, origin)
        self._probing: Probing | None = None
        self._engines: EngineDesk | None = None
        self._workload: Workload | None = None
        self._workload_status: int | None = None
        self._recorder: subprocess.Popen[bytes] | None = None
        self._channel: Channel
        self._receipt_saved = False
        self._sealed: Message | None = None
        self._phase = "recording"
        self._signal = 0
        self._scenario_ended = False
        self._begin_s = 0.0
        self._capabilities: list[dict[str, Any]] = []

    def run(self) -> CaptureResult:
        """Capture until the end, seal, publish."""
        plan = self._plan
        if plan.scenario is None:
            self._load()
        handlers = self._take_signals()
        try:
            plan.output.create(plan.recorder)
            if plan.output.kept:
                plan.tell(Status("notice", f"an earlier capture that did not end is kept in {plan.output.kept}"))
            self._hold()
            self._spawn()
            if self._probing:  # while the recorder starts: what runs already is probed when the receipt comes
                self._probing.scan_when_due()
            self._await_receipt()
            self._launch()
            ended_by = self._watch()
            self._finish()
            result = self._publish(ended_by)
            if ended_by == "duration" and self._workload is not None:
                result = self._await_workload(result)
        except BaseException as e:
            error = self._recorder_gone() if isinstance(e, ChannelBroken) else e
            self._abandon()
            self._outlive(error)
            if error is e:
                raise
            raise error from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if self._recorder and self._recorder.stderr:
                self._recorder.stderr.close()
            if self._probing:
                self._probing.close()
            if self._engines:
                self._engines.close()
            plan.output.close()
        return result

    def _load(self) -> None:
        """What probes and who connects, and who keeps the capability for it that this process will give up."""
        plan = self._plan
        self._probing = Probing.load(plan.options)
        if plan.own_process:
            self._probing.keep_probing()
        if "engines" in plan.options.sources:
            self._engines = EngineDesk(plan.engines, self._traced, namespace_desk(plan.own_process))

    def _take_signals(self) -> dict[int, Any]:
        def note(number: int, _: FrameType | None) -> None:
            self._signal = self._signal or number

        under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        try:
            return {n: signal.signal(n, note) for n in END_SIGNALS if n != signal.SIGHUP or not under_nohup}
        except ValueError:  # not the main thread: whoever runs us there ends us by the duration
            return {}

    def _spawn(self) -> None:
        plan = self._plan
        ours, theirs = socket.socketpair()
        rings = self._probing.rings if self._probing else []
        counters = self._probing.counters_fd if self._probing else -1
        dial, files = self._engines.descriptors if self._engines else (-1, -1)
        inherited = [theirs.fileno(), *(r.fd for r in rings), *(fd for fd in (counters, dial, files) if fd >= 0)]
        with theirs, end_signals_blocked():
            # A session of its own and no descriptor of the terminal: a recorder that was taken over can neither type
            # into root's shell (TIOCSTI needs the controlling terminal) nor write to its screen.
            self._recorder = subprocess.Popen(
                child_command("gpuaudit.capture.recorder_main", str(theirs.fileno())),
                pass_fds=inherited, cwd=plan.output.partial, env=child_environment(), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        if self._engines:
            self._engines.give_away()
        self._channel = Channel(ours, TO_ATTACHER)
        if self._probing:
            self._probing.exclude(self._recorder.pid)
            for helper in self._engines.helpers if self._engines else ():
                self._probing.tell_helper(helper)
        start = StartMessage(
            site=plan.options.site, host_id=str(plan.host_facts["host_id"]), capture_uuid=plan.capture_uuid,
            challenge=plan.options.challenge, public_key=plan.identity.public_key.hex(), open_body=plan.open_body,
            sources=list(plan.options.sources), seed=plan.options.seed,
            capabilities=[vars(c) for c in self._probing.capabilities] if self._probing else [],
            gpus=list(plan.scenario.gpus) if plan.scenario else [], rings=list(rings), counters_fd=counters,
            dial_fd=dial, files_fd=files, synthetic=plan.options.synthetic,
            uid=plan.recorder.uid if plan.recorder else None, gid=plan.recorder.gid if plan.recorder else None,
            site_policy=plan.options.policy.artefact() if plan.options.policy else None,
        )  # fmt: skip
        self._channel.send("start", **start.to_message())

    def _await_receipt(self) -> None:
        deadline = time.monotonic() + RECEIPT_DEADLINE_S
        while not self._receipt_saved:
            if time.monotonic() > deadline:
                raise HostUnfit(f"the recorder did not begin within {RECEIPT_DEADLINE_S:.0f} s")
            self._turn(0.5)
        self._begin_s = time.monotonic()
        if self._probing and self._recorder:
            self._probing.tell_recorder(self._recorder.pid)

    def _hold(self) -> None:
        """Start the workload, held: before this process gives anything up that the workload may have."""
        plan = self._plan
        try:
            if plan.command and not self._signal:
                self._workload = Workload(plan.command, plan.user, plan.limits)
        except HostUnfit:
            if not self._signal:  # a Ctrl-C reaches the held process too
                raise

    def _launch(self) -> None:
        """Probe what the held workload is linked with, let it go, and give up what is needed no longer."""
        if self._plan.command is not None:
            self._release(self._plan.command)
        if self._plan.own_process:
            limit_while_running(self._plan.options.sources, other_users=self._plan.recorder is not None)

    def _release(self, command: Command) -> None:
        try:
            if self._workload and not self._signal:
                if self._probing:
                    self._probing.prepare_workload(self._workload.pid, command, self._plan.user)
                    self._send_rows()
                if not self._signal:
                    self._workload.release()
        except HostUnfit:
            if not self._signal:  # a Ctrl-C reaches the held process too
                raise
        if self._workload is None or self._workload.is_held:
            self._not_launched()
        elif self._probing:
            self._probing.workload_released()

    def _not_launched(self) -> None:
        """A signal came before the command ran: it never will."""
        if self._workload is not None:
            self._workload.kill_held()
        self._workload, self._workload_status = None, -self._signal
        self._plan.tell(Status("notice", "the capture was ended before the command was started"))

    def _watch(self) -> EndedBy:
        """Turn after turn until something ends the capture."""
        options = self._plan.options
        duration_s = options.duration_s
        if duration_s is None and not options.command and not options.synthetic:
            duration_s = DEFAULT_DURATION_S
        while self._sealed is None:
            self._turn(TURN_S)
            if self._probing:
                self._probing.scan_when_due()
                self._look_for_engines()
                self._send_rows()
            if self._workload and (status := self._workload.poll()) is not None:
                self._workload_status = status
                return "workload"
            if self._signal:
                return self._on_signal()
            if self._scenario_ended:
                return "scenario"
            if self._probing and self._probing.all_ended():
                return "workload"
            if duration_s is not None and time.monotonic() - self._begin_s >= duration_s:
                return "duration"
        return "duration"

    def _on_signal(self) -> EndedBy:
        """Pass the signal on where it did not reach the workload, and record its end."""
        number = self._signal
        if self._workload:
            self._end_workload(self._workload, lambda: self._turn(TURN_S))
        return "interrupt" if number == signal.SIGINT else "terminate"

    def _end_workload(self, workload: Workload, turn: Callable[[], None]) -> None:
        """Pass the signal that came on, and give the workload some time to end; a second signal ends the wait."""
        number, self._signal = self._signal, 0
        if number == signal.SIGTERM or not typed_at_terminal():
            workload.send_signal(number)
        deadline = time.monotonic() + WORKLOAD_GRACE_S
        while (status := workload.poll()) is None and not self._signal and time.monotonic() < deadline:
            turn()
            if self._sealed is not None and self._phase == "recording":
                break  # the disk is full
        self._workload_status = status

    def _finish(self) -> None:
        """Detach, send the last rows, and have it sealed."""
        self._phase = "sealing"
        if self._sealed is not None:  # the recorder ended by itself: the disk is full
            return
        cost = []
        if self._probing:
            self._probing.finish(self._workload, self._workload_status)
            self._send_rows()
            cost = self._probing.cost_rows()
        cost += usage_rows("attacher", resource.getrusage(resource.RUSAGE_SELF))
        self._channel.send("finish", cost=cost)
        deadline = time.monotonic() + SEAL_DEADLINE_S
        while self._sealed is None:
            if time.monotonic() > deadline:
                raise HostUnfit(f"the recorder did not seal within {SEAL_DEADLINE_S:.0f} s")
            self._turn(0.5)

    def _turn(self, timeout_s: float) -> None:
        """Handle what the recorder sends."""
        wake = self._probing.wake_descriptors if self._probing and self._phase == "recording" else []
        messages = self._channel.receive(timeout_s, wake)
        if wake and self._probing:
            time.sleep(WAKE_PAUSE_S)
            self._probing.look_at_once()
        for message in messages:
            self._handle(message)

    def _handle(self, message: Message) -> None:
        kind = message["type"]
        if kind == "sign":
            self._desk.answer(message, self._channel)
        elif kind == "receipt" and not self._receipt_saved:
            text = str(message.get("text", ""))
            self._plan.output.save_receipt(text)
            self._receipt_saved = True
            self._plan.tell(Status("receipt", text))
        elif kind == "status":
            self._scenario_ended = bool(message.get("ended"))
            self._tell_status(message)
        elif kind == "failed":
            raise _error_of(message)
        elif kind == "sealed":
            self._sealed = message

    def _tell_status(self, message: Message) -> None:
        rows = message.get("rows")
        status = Status(
            "sealing" if self._phase == "sealing" else "recording",
            elapsed_s=int(message.get("elapsed_ns", 0)) / 1e9,
            rows={str(k): int(v) for k, v in rows.items()} if isinstance(rows, dict) else {},
            lost=int(message.get("lost", 0)),
            size_bytes=int(message.get("size_bytes", 0)),
        )
        self._plan.tell(status)

    def _traced(self) -> set[int] | None:
        """The processes that are captured and their children; None for the whole host."""
        options = self._plan.options
        chosen = {self._workload.pid} if self._workload else set(options.pids)
        if chosen or options.command:
            return processes.children(chosen)
        return self._probing.selected() if self._probing else None

    def _look_for_engines(self) -> None:
        if self._engines is None or self._sealed is not None:
            return
        self._engines.scan_when_due()
        for body in self._engines.take_messages():
            self._channel.send("engine", **body)
        for table, row in self._engines.take_rows():
            self._channel.send("rows", table=table, rows=[row])

    def _send_rows(self) -> None:
        assert self._probing is not None  # noqa: S101 - callers have checked
        for table, rows in self._probing.take_rows():
            self._channel.send("rows", table=table, rows=rows)

    def _publish(self, ended_by: EndedBy) -> CaptureResult:
        output, sealed = self._plan.output, self._sealed
        assert sealed is not None  # noqa: S101 - _finish waits for it
        assert self._recorder is not None  # noqa: S101 - it sealed
        self._channel.close()
        try:
            self._recorder.wait(RECORDER_EXIT_S)
        except subprocess.TimeoutExpired:  # it has sealed: what hangs after that keeps no bundle from its name
            self._recorder.kill()
            self._recorder.wait()
        output.publish()
        full_after_ns = sealed.get("full_after_ns")
        if full_after_ns is not None:
            raise HostUnfit(
                f"the disk became full: the first {int(full_after_ns) / 1e9:.1f} s are safe, sealed in {output.path}",
                hint="free some room, or choose --out on a larger disk, and capture again",
            )
        totals = {str(t): {k: int(v) for k, v in c.items()} for t, c in sealed["totals"].items()}
        sources = [{str(k): str(v) for k, v in s.items()} for s in sealed["sources"]]
        asked = {*self._plan.options.sources, "clock"}
        missing = [s for s in sources if s["source"] in asked and s["state"] != "recorded"]
        incomplete = [f"{s['source']}: {s['state']} ({s['reason']})" for s in missing]
        if not sealed.get("by_identity"):
            incomplete.append("the identity did not sign the seal")
        return CaptureResult(
            path=output.path, seal_path=output.seal_path, receipt_path=output.receipt_path, origin=self._origin,
            root_b64=str(sealed["root_b64"]), size=int(sealed["size"]), file_sha256=str(sealed["file_sha256"]),
            ended_by=ended_by, elapsed_s=int(sealed["elapsed_ns"]) / 1e9, totals=totals, sources=sources,
            incomplete=tuple(incomplete), workload_status=self._workload_status, identity_created=False,
        )  # fmt: skip

    def _await_workload(self, result: CaptureResult) -> CaptureResult:
        """The duration was over before the workload: the bundle is sealed, and the command's exit code still counts."""
        self._wait_while_it_runs(f"sealed {result.path}")
        return replace(result, workload_status=self._workload_status)

    def _outlive(self, error: BaseException) -> None:
        """The capture failed, and the workload did nothing wrong: it goes on, and who started us still waits for it."""
        if self._workload is None or self._workload.is_held:
            return
        if self._probing:
            self._probing.close()
        self._wait_while_it_runs(f"the capture failed: {error}")

    def _wait_while_it_runs(self, what: str) -> None:
        """Until the workload ends; a signal is passed on to it."""
        workload = self._workload
        assert workload is not None  # noqa: S101 - callers have checked
        if (status := workload.poll()) is None and not self._signal:
            self._plan.tell(Status("notice", f"{what}; waiting for the workload (process {workload.pid}) to end"))
        while (status := workload.poll()) is None and not self._signal:
            time.sleep(TURN_S)
        self._workload_status = status
        if status is None:
            self._end_workload(workload, lambda: time.sleep(TURN_S))

    def _recorder_gone(self) -> AuditError:
        """Why the channel closed without a word: the recorder died."""
        assert self._recorder is not None  # noqa: S101 - there is a channel
        try:
            code: int | str = self._recorder.wait(RECORDER_EXIT_S)
        except subprocess.TimeoutExpired:
            code = "unknown, it still runs"
        partial = self._plan.output.partial
        how = f"signal {-code}" if isinstance(code, int) and code < 0 else f"exit code {code}"
        said = self._last_words()
        return HostUnfit(
            f"the recorder ended before it sealed ({how}{said and ': ' + said})",
            hint=f"what it had sealed is in {partial}: audit verify {partial}/bundle.db",
        )

    def _last_words(self) -> str:
        """The last line of the recorder's stderr: where Python itself could not go on."""
        pipe = self._recorder.stderr if self._recorder else None
        if pipe is None:
            return ""
        os.set_blocking(pipe.fileno(), False)
        lines = (pipe.read(1 << 16) or b"").decode("utf-8", "replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

    def _abandon(self) -> None:
        """After a failure: let the recorder write what it has, and leave nothing running that we started."""
        if self._workload is not None and self._workload.poll() is None and self._workload.is_held:
            self._workload.kill_held()
        if self._recorder is not None:
            self._channel.close()
            try:
                self._recorder.wait(RECORDER_EXIT_S)
            except subprocess.TimeoutExpired:
                self._recorder.kill()
                self._recorder.wait()
        if self._receipt_saved:
            self._plan.output.hand_over_partial()
        else:
            self._plan.output.discard()


def _error_of(message: Message) -> AuditError:
    """The recorder's error as ours; its texts are bounded, because it may have been taken over."""
    text, hint = str(message.get("message", ""))[:1000], str(message.get("hint", ""))[:1000]
    if message.get("exit_code") == EXIT_ENVIRONMENT:
        return HostUnfit(text, hint=hint)
    return AuditError(text, hint=hint)
