"""OCI runtime specs for containers and processes: ``build_spec``, ``build_exec``, and ``validate`` for create."""

from engine.spec.builder import build_spec, validate
from engine.spec.exec import ExecRequest, build_exec

__all__ = ["ExecRequest", "build_exec", "build_spec", "validate"]
