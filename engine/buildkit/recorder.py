"""The solver's progress as vertexes.

Rule: only what makes files has a vertex (a base, RUN, COPY, ADD, WORKDIR), numbered within its stage as BuildKit does.
"""

from __future__ import annotations

from collections.abc import Collection

from engine.build.dockerfile.errors import Warning
from engine.build.dockerfile.instructions import Run, Transfer, Typed
from engine.build.plan import SCRATCH, Plan, Stage
from engine.build.progress import Json, Progress, StageLog, Step
from engine.buildkit.failures import CANCELED
from engine.buildkit.status import Status, Vertex
from oci import reference as references
from oci.errors import InvalidArgument, Unimplemented


class Recorder(Progress):
    """Events of one build, told to a ``Status``. ``loaded`` is the Dockerfile's vertex, which warnings belong to."""

    def __init__(
        self, status: Status, loaded: Vertex, filename: str, source: bytes, contexts: Collection[str] = ()
    ) -> None:
        """``contexts``: names of contexts that the client gives."""
        super().__init__(steps=True)
        self._status = status
        self._loaded = loaded
        self._filename, self._source = filename, source
        self._contexts = contexts
        self._vertexes: dict[int, Vertex] = {}
        self._failed: Vertex | None = None

    def planned(self, plan: Plan) -> None:
        """Tell of all steps before the first begins, so that displays know how many there are.

        Raises ``Unimplemented`` for a context in place of a stage.
        """
        for stage in plan.stages:
            if stage.name and stage.name in self._contexts:
                raise Unimplemented(f"the context {stage.name} has the name of a stage", hint="give it another name")
        number = 0
        for stage in (plan.stages[n] for n in plan.needed):
            shown = {at: name for at, name in enumerate(_names(stage)) if name}
            title = stage.title + " " if stage.name or len(plan.stages) > 1 else ""
            width = len(str(len(shown)))
            for place, (at, name) in enumerate(shown.items(), 1):
                vertex = self._status.vertex(f"[{title}{place:{width}}/{len(shown)}] {name}")
                vertex.announce()
                self._vertexes[number + at + 1] = vertex
            number += 1 + len(stage.steps)

    def stage(self) -> StageLog:
        return VertexLog(self)

    def vertex_of(self, step: Step) -> Vertex | None:
        """The vertex of a step; None for those that are not shown."""
        return self._vertexes.get(step.number)

    def failed(self, vertex: Vertex | None) -> None:
        """A step failed; why is told with ``fail``."""
        self._failed = self._failed or vertex

    def fail(self, text: str) -> None:
        """The build failed because of ``text``."""
        if self._failed is not None:
            self._failed.finish(error=text)

    def warn(self, warning: Warning) -> None:
        text = f"{warning.rule}: {warning.text} (line {warning.lines.first})"
        self._loaded.warn(text, warning.rule, self._filename, self._source, warning.lines)

    def say(self, message: Json) -> None:
        text = str(message.get("stream", "")).strip()
        if text:
            self._loaded.warn(text.removeprefix("[Warning] "), "", self._filename, self._source, None)

    def flush(self) -> None:
        """Nothing waits: clients sort by themselves."""


class VertexLog(StageLog):
    """One stage."""

    def __init__(self, owner: Recorder) -> None:
        super().__init__(owner)
        self._recorder = owner
        self._vertex: Vertex | None = None

    def begin(self, step: Step) -> None:
        self.finish(self._state)
        # A base that is not pulled was here.
        self._step, self._state = step, "cached" if step.original[:4].upper() == "FROM" else "done"
        self._vertex = self._recorder.vertex_of(step)
        if self._vertex is not None:
            self._vertex.start()

    def cached(self) -> None:
        self._state = "cached"

    def finish(self, state: str) -> None:
        vertex, self._vertex, self._step = self._vertex, None, None
        if vertex is None or not vertex.running:
            return
        if state == "failed":
            self._recorder.failed(vertex)
        else:
            vertex.finish(cached=state == "cached", error=CANCELED if state == "canceled" else "")

    def output(self, text: str, *, error: bool = False) -> None:
        if self._vertex is not None:
            self._vertex.log(text.encode(errors="surrogateescape"), 2 if error else 1)

    def say(self, message: Json) -> None:
        """What a pull tells of a layer."""
        if self._vertex is None or not message.get("id") or "progressDetail" not in message:
            return
        self._state = "done"
        detail, status = message["progressDetail"], str(message.get("status", ""))
        done = status in ("Pull complete", "Already exists")
        name = f"{message['id']} {status.lower()}" if not done else f"{message['id']} pull complete"
        self._vertex.progress(name, int(detail.get("current", 0)), int(detail.get("total", 0)), done=done)

    def text(self, text: str) -> None:
        """The classic builder's words."""


def _names(stage: Stage) -> list[str]:
    """What each instruction of a stage is called, FROM first; empty for those that make no files."""
    base = "" if stage.base_stage is not None or stage.base == SCRATCH else f"FROM {_canonical(stage.base)}"
    return [base, *(step.source.original if _shown(step) else "" for step in stage.steps)]


def _shown(step: Typed) -> bool:
    return isinstance(step, (Transfer, Run)) or step.source.keyword == "WORKDIR"


def _canonical(name: str) -> str:
    try:
        return str(references.parse(name).tagged())
    except InvalidArgument:
        return name
