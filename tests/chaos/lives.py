"""Container lives: what a storm runs, and what must be true of each whatever is killed meanwhile.

Rule: the program of a life is fixed beforehand, so its output and its exit code are known to the byte. A call that the
engine did not live to answer is looked after by inspecting, as a careful user would; only what such a user could see is
held against the engine.
"""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.chaos.api import Answer, Api, Broken, demultiplexed

PATIENCE = 60.0
"""Seconds a life waits for one thing to become true before it is a failure."""

PAUSE = 0.05
RESTARTS = 3
"""By a policy, at most."""


class Plan(NamedTuple):
    """A life as it should go. ``number`` and the storm's seed make all of it."""

    number: int
    kind: str
    lines: int
    pause: float
    code: int
    network: str
    auto_remove: bool


class Wrong(Exception):
    """Something that must never be: ``kind`` sorts it, the text says what was seen."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def plan(seed: int, number: int) -> Plan:
    """The ``number``-th life of the storm ``seed``."""
    chance = random.Random(f"{seed}/{number}")
    kind = chance.choice(tuple(KINDS))
    return Plan(
        number,
        kind,
        lines=chance.randint(5, 40),
        pause=chance.choice((0.01, 0.02, 0.05)),
        code=chance.randint(1, 120),
        network="bridge" if chance.random() < 0.2 else "none",
        auto_remove=False,
    )


class Life:
    """One container from create to remove. ``journal`` tells what happened, for the report."""

    def __init__(self, api: Api, plan: Plan, over: threading.Event) -> None:
        self.api = api
        self.plan = plan
        self.name = f"life{plan.number}"
        self.journal: list[tuple[float, str]] = []
        self.refusals = 0
        self.id = ""
        self._over = over

    def note(self, text: str) -> None:
        """Write into the journal."""
        self.journal.append((time.monotonic(), text))

    def run(self) -> None:
        """Live. Raises ``Wrong``."""
        self.note(f"{self.plan}")
        config, live = KINDS[self.plan.kind]
        self.create(config(self.plan))
        self.start()
        live(self)
        self.remove()

    def until(self, what: str, step: Callable[[], Any]) -> Any:
        """Repeat ``step`` until it gives something true. Raises ``Wrong`` when that takes too long."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if result := step():
                    return result
            except Broken as error:
                self.note(f"broken: {error}")
            if time.monotonic() > deadline:
                raise Wrong("hangs", f"{what}: not within {PATIENCE:g} s")
            time.sleep(PAUSE)

    def call(self, method: str, path: str, body: object = None, **query: Any) -> Answer:
        """A call whose refusal is noted."""
        answer = self.api.call(method, path, body, **query)
        if answer.status >= 500:
            self.refusals += 1
        if answer.status >= 400 or method != "GET":
            self.note(f"{method} {path}: {answer.status} {answer.message if not answer.ok else ''}")
        return answer

    def inspect(self) -> dict[str, Any]:
        """What the engine says of the container; it must know it."""

        def step() -> Any:
            answer = self.api.call("GET", f"/containers/{self.name}/json")
            if answer.status == 404:
                raise Wrong("container lost", f"inspect: {answer.message}")
            return answer.data if answer.ok else None

        found: dict[str, Any] = self.until("inspect", step)
        return found

    def create(self, config: dict[str, Any]) -> None:
        """Create it; a call that broke is made again until the name is taken by it."""
        host = {"NetworkMode": self.plan.network, **config.get("HostConfig", {})}
        body = {"Image": "busybox", **config, "HostConfig": host}

        def step() -> bool:
            answer = self.call("POST", "/containers/create", body, name=self.name)
            if answer.ok:
                self.id = answer.data["Id"]
            elif answer.status == 409:
                self.id = self.inspect()["Id"]
            elif answer.status < 500:
                raise Wrong("refused", f"create: {answer.status} {answer.message}")
            return bool(self.id)

        self.until("create", step)

    def start(self) -> None:
        """Start it; once it was seen running, or to have run, it is never started again."""

        def step() -> bool:
            answer: Answer | None = None
            try:
                answer = self.call("POST", f"/containers/{self.name}/start")
            except Broken as error:
                self.note(f"broken: {error}")
            if answer is not None and answer.ok:
                return True
            if answer is not None and answer.status < 500:
                raise Wrong("refused", f"start: {answer.status} {answer.message}")
            state = self.inspect()["State"]
            self.note(f"after an unanswered start: {state['Status']} {state['ExitCode']} {state['Error']!r}")
            return state["Running"] or (state["Status"] == "exited" and not state["Error"])

        self.until("start", step)

    def exit_code(self) -> int:
        """Wait for its end."""

        def step() -> Any:
            answer = self.api.call("POST", f"/containers/{self.name}/wait", timeout=PATIENCE)
            if answer.status == 404:
                raise Wrong("container lost", f"wait: {answer.message}")
            return (answer.data["StatusCode"],) if answer.ok and isinstance(answer.data, dict) else None

        (code,) = self.until("wait", step)
        self.note(f"ended with {code}")
        return int(code)

    def expect_exit(self, wanted: int) -> None:
        """Raises ``Wrong`` unless both Wait and Inspect tell ``wanted``."""
        code = self.exit_code()
        state = self.inspect()["State"]
        if code != wanted or state["ExitCode"] != wanted:
            raise Wrong("exit code", f"wait says {code}, inspect {state['ExitCode']}, it was {wanted}; {state}")

    def logs(self) -> tuple[bytes, bytes]:
        """(stdout, stderr) so far."""

        def step() -> Any:
            answer = self.api.call("GET", f"/containers/{self.name}/logs", stdout=1, stderr=1)
            if answer.status == 404:
                raise Wrong("container lost", f"logs: {answer.message}")
            return (answer.data,) if answer.ok else None

        (data,) = self.until("logs", step)
        data = data if isinstance(data, bytes) else b""
        return (data, b"") if self.plan.kind == "terminal" else demultiplexed(data)

    def expect_logs(self, stdout: bytes, stderr: bytes = b"") -> None:
        """Raises ``Wrong`` unless the log is exactly this."""
        for name, seen, wanted in zip(("stdout", "stderr"), self.logs(), (stdout, stderr), strict=True):
            if seen != wanted:
                raise Wrong("log", f"{name}: {_difference(seen, wanted)}")

    def await_log(self, line: bytes) -> None:
        """Wait until ``line`` is in the log."""
        self.until(f"{line!r} in the log", lambda: line in self.logs()[0])

    def signal(self, name: str) -> None:
        """Send a signal until it has arrived."""

        def step() -> bool:
            answer = self.call("POST", f"/containers/{self.name}/kill", signal=name)
            return answer.status in (204, 409) or not self.inspect()["State"]["Running"]

        self.until(f"kill {name}", step)

    def remove(self) -> None:
        """Remove it, and see it gone."""

        def step() -> bool:
            answer = self.call("DELETE", f"/containers/{self.name}", force=1, v=1)
            return answer.status in (204, 404)

        self.until("remove", step)


def _difference(seen: bytes, wanted: bytes) -> str:
    at = next((i for i, (a, b) in enumerate(zip(seen, wanted, strict=False)) if a != b), min(len(seen), len(wanted)))
    return (
        f"{len(seen)} bytes for {len(wanted)}; at byte {at}: {seen[max(0, at - 40) : at + 60]!r} "
        f"for {wanted[max(0, at - 40) : at + 60]!r}"
    )


def shell(script: str, **more: Any) -> dict[str, Any]:
    """The configuration of a container that runs ``script``."""
    return {"Cmd": ["sh", "-c", script], **more}


def counting(plan: Plan, *, errors: bool = True) -> str:
    """A script that counts on stdout, with ``errors`` also on stderr."""
    err = 'echo "err $i" >&2; ' if errors else ""
    body = f'echo "out $i"; {err}sleep {plan.pause}'
    return f"i=0; while [ $i -lt {plan.lines} ]; do i=$((i+1)); {body}; done; exit {plan.code}"


def counted(plan: Plan, word: str, end: str = "\n") -> bytes:
    """What it says on one of the two."""
    return "".join(f"{word} {number}{end}" for number in range(1, plan.lines + 1)).encode()


def count(life: Life) -> None:
    life.expect_exit(life.plan.code)
    life.expect_logs(counted(life.plan, "out"), counted(life.plan, "err"))


def _terminal(life: Life) -> None:
    life.expect_exit(life.plan.code)
    life.expect_logs(counted(life.plan, "out", "\r\n"))


def burst(life: Life) -> None:
    life.expect_exit(life.plan.code)
    life.expect_logs(b"".join(b"%d\n" % number for number in range(1, 500 * life.plan.lines + 1)))


def _stopped(life: Life) -> None:
    life.await_log(b"up\n")

    def step() -> bool:
        answer = life.call("POST", f"/containers/{life.name}/stop", t=60)
        return answer.ok and not life.inspect()["State"]["Running"]

    life.until("stop", step)
    life.expect_exit(life.plan.code)
    life.expect_logs(b"up\nbye\n")


def killed(life: Life) -> None:
    life.await_log(b"up\n")
    life.signal("KILL")
    life.expect_exit(137)
    life.expect_logs(b"up\n")


def _paused(life: Life) -> None:
    def step(verb: str, wanted: str) -> bool:
        life.call("POST", f"/containers/{life.name}/{verb}")
        status: str = life.inspect()["State"]["Status"]
        return status in (wanted, "exited")

    life.until("pause", lambda: step("pause", "paused"))
    time.sleep(0.1)
    life.until("unpause", lambda: step("unpause", "running"))
    count(life)


def _exec(life: Life) -> None:
    """An exec whose output came whole has its exit code; one that broke is done again."""
    body = {"Cmd": ["sh", "-c", f"echo in; exit {life.plan.code}"], "AttachStdout": True, "AttachStderr": True}

    def step() -> bool:
        made = life.call("POST", f"/containers/{life.name}/exec", body)
        if not made.ok:
            return False
        ident = made.data["Id"]
        started = life.call("POST", f"/exec/{ident}/start", {"Detach": False, "Tty": False})
        if not started.ok or demultiplexed(started.data)[0] != b"in\n":
            life.note(f"exec gave {started.data!r}")
            return False
        deadline = time.monotonic() + 10
        while True:
            told = life.api.call("GET", f"/exec/{ident}/json")
            if told.status == 404:
                life.note("the exec was forgotten by an engine that was killed")
                return False
            if told.ok and not told.data["Running"]:
                break
            if time.monotonic() > deadline:
                raise Wrong("exec", f"exec {ident} still counts as running: {told.data}")
            time.sleep(PAUSE)
        if told.data["ExitCode"] != life.plan.code:
            raise Wrong("exec", f"exit code {told.data['ExitCode']}, it was {life.plan.code}")
        return True

    life.await_log(b"up\n")
    for _ in range(2):
        life.until("exec", step)
    life.signal("KILL")
    life.expect_exit(137)
    life.expect_logs(b"up\n")


def _attached(life: Life) -> None:
    """Words go in by attach until they come out; a connection that broke is made again."""
    words = [f"word{number}" for number in range(3)]

    def step(word: str) -> bool:
        if not life.inspect()["State"]["Running"]:
            raise Wrong("ended", f"it ended while it was fed: {life.inspect()['State']}")
        with life.api.hijack(f"/containers/{life.name}/attach", stream=1, stdin=1, stdout=1, logs=1) as peer:
            peer.settimeout(5)
            try:
                peer.sendall(f"{word}\n".encode())
                data = b""
                while f"got {word}\n".encode() not in demultiplexed(data)[0]:
                    piece = peer.recv(65536)
                    if not piece:
                        life.note(f"attach ended behind {data[-80:]!r}")
                        return False
                    data += piece
            except OSError as error:
                life.note(f"attach broke: {error!r}")
                return False
            return True

    for word in words:
        life.until(f"attach {word}", functools.partial(step, word))
    life.signal("KILL")
    life.expect_exit(137)
    seen = life.logs()[0].decode().split("\n")
    repeated = [line for line in seen if line and line not in [f"got {word}" for word in words]]
    if repeated or seen[-1]:
        raise Wrong("log", f"unknown lines {seen}")


def _restarted(life: Life) -> None:
    """A policy starts it again exactly as often as it says."""
    times = life.plan.lines % RESTARTS + 1

    def over() -> bool:
        found = life.inspect()
        if found["RestartCount"] > times:
            raise Wrong("restarts", f"{found['RestartCount']} for {times}")
        return bool(found["RestartCount"] == times and found["State"]["Status"] == "exited")

    life.until("the last restart", over)
    state = life.inspect()["State"]
    if state["ExitCode"] != life.plan.code:
        raise Wrong("exit code", f"{state['ExitCode']}, it was {life.plan.code}; {state}")
    life.expect_logs(b"run\n" * (times + 1))


def _policy(plan: Plan) -> dict[str, Any]:
    return {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": plan.lines % RESTARTS + 1}}


Kind = tuple[Callable[[Plan], dict[str, Any]], Callable[[Life], None]]
_FOREVER = "echo up; while :; do sleep 0.2; done"
KINDS: dict[str, Kind] = {
    "count": (lambda p: shell(counting(p)), count),
    "burst": (lambda p: shell(f"seq 1 {500 * p.lines}; exit {p.code}"), burst),
    "terminal": (lambda p: shell(counting(p, errors=False), Tty=True), _terminal),
    "stopped": (lambda p: shell(f"trap 'echo bye; exit {p.code}' TERM; {_FOREVER}"), _stopped),
    "killed": (lambda _: shell(_FOREVER), killed),
    "paused": (lambda p: shell(counting(p)), _paused),
    "restarted": (lambda p: shell(f"echo run; exit {p.code}", HostConfig=_policy(p)), _restarted),
    "exec": (lambda _: shell(_FOREVER), _exec),
    "attached": (lambda _: shell("while read x; do echo got $x; done", OpenStdin=True, AttachStdin=True), _attached),
}
"""Kinds of lives: the configuration, and what is done and must be seen between start and remove."""
