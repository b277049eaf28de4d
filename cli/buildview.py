"""What a build looks like: steps with a mark and a time on a terminal, numbered lines in a log.

Rule: what a step wrote is shown while it runs and when it fails; a build that went well leaves one line a step. An
engine that tells no steps (docker's) is shown as it speaks.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from cli.errors import CommandFailed

STEP = "gantry.step"
TAIL = 12
"""Lines of a failed step's output that are shown again."""

Message = dict[str, Any]


class Step:
    """One step as far as it is known."""

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = " ".join(name.split())
        self.state = ""
        self.began = time.monotonic()
        self.ended = 0.0
        self.tail: deque[str] = deque(maxlen=TAIL)
        self._part = ""

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.began

    def output(self, text: str) -> list[str]:
        """Whole lines that ``text`` completes."""
        *lines, self._part = (self._part + text).replace("\r\n", "\n").split("\n")
        lines = [line.rpartition("\r")[2] for line in lines]
        self.tail.extend(lines)
        return lines

    def end(self, state: str) -> list[str]:
        """The step is over; what it wrote without a line end."""
        self.state, self.ended = state, time.monotonic()
        rest, self._part = self._part, ""
        self.tail.extend([rest] if rest else [])
        return [rest] if rest else []


class View:
    """Follows a build; this one shows nothing. ``image`` is the id once it is known."""

    def __init__(self) -> None:
        self.image = ""
        self.total = 0
        self.excerpt = ""
        self.steps: dict[int, Step] = {}

    def take(self, message: Message) -> None:
        """One message of the engine; an error raises ``CommandFailed``."""
        if "errorDetail" in message or "error" in message:
            detail = message.get("errorDetail") or {}
            self.failed()
            raise CommandFailed(str(detail.get("message") or message.get("error")), int(detail.get("code") or 1))
        aux = message.get("aux") or {}
        if message.get("id") == STEP:
            self._event(aux)
        elif "ID" in aux:
            self.image = str(aux["ID"])
        elif "stream" in message:
            self.text(str(message["stream"]))
        elif "status" in message:
            self.transfer(message)

    def _event(self, event: dict[str, Any]) -> None:
        if "excerpt" in event:
            self.excerpt = str(event["excerpt"])
            return
        number = int(event["number"])
        self.total = int(event["total"])
        if "name" in event:
            self.steps[number] = Step(number, str(event["name"]))
            self.began(self.steps[number])
        step = self.steps[number]
        if "output" in event:
            self.wrote(step, step.output(str(event["output"])))
        if "state" in event:
            self.wrote(step, step.end(str(event["state"])))
            self.ended(step)

    def began(self, step: Step) -> None:
        """A step begins."""

    def wrote(self, step: Step, lines: list[str]) -> None:
        """A step wrote lines."""

    def ended(self, step: Step) -> None:
        """A step is over."""

    def text(self, text: str) -> None:
        """A line that belongs to no step."""

    def transfer(self, message: Message) -> None:
        """News of a pull."""

    def failed(self) -> None:
        """The build is over, and not well."""

    def failure(self) -> list[str]:
        """The failed step's last words and its place in the Dockerfile."""
        lines: list[str] = []
        for step in self.steps.values():
            if step.state == "failed" and step.tail:
                lines += ["-" * 20, f" > {step.name}:", *step.tail, "-" * 20]
        return lines + ([self.excerpt] if self.excerpt else [])


class Plain(View):
    """Lines, for logs: ``#3 [build 2/4] RUN make``, ``#3 0.512 output``, ``#3 DONE 1.2s``."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, str] = {}

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def began(self, step: Step) -> None:
        self._print(f"#{step.number} {step.name}")

    def wrote(self, step: Step, lines: list[str]) -> None:
        for line in lines:
            self._print(f"#{step.number} {step.seconds:.3f} {line}")

    def ended(self, step: Step) -> None:
        end = f"DONE {step.seconds:.1f}s" if step.state == "done" else step.state.upper()
        self._print(f"#{step.number} {end}")

    def text(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    def transfer(self, message: Message) -> None:
        name, status = str(message.get("id", "")), str(message["status"])
        if self._said.get(name) != status:
            self._said[name] = status
            self._print(f"{name}: {status}" if name else status)

    def failed(self) -> None:
        for line in self.failure():
            self._print(line)


def show(messages: Iterable[Message], progress: str) -> str:
    """Show ``messages`` until they end (``progress``: auto, plain, quiet); the image's id."""
    if progress == "auto" and sys.stderr.isatty():
        from cli.buildlive import live

        return live(messages)
    view = View() if progress == "quiet" else Plain()
    return follow(view, messages)


def follow(view: View, messages: Iterable[Message]) -> str:
    """Give ``view`` every message; the image's id. An end without an image raises ``CommandFailed``."""
    for message in messages:
        view.take(message)
    if not view.image:
        raise CommandFailed("the engine ended the build without an image: see its log")
    return view.image
