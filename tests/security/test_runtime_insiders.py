"""Attacks from inside and by what a spec says that worked on other runtimes, each with a witness (see ``witness``)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from runc_py import capabilities, namespaces, process, shape, spec, state, syscalls
from runc_py.errors import RuntimeFailure
from tests.integration.runc_py import conftest
from tests.integration.runc_py.conftest import Bundle, cgroups_of, wait
from tests.security import hostile_specs, witness
from tests.security.witness import in_child, runs

pytestmark = pytest.mark.root

bundle = conftest.bundle
busybox_root = conftest.busybox_root
defended = witness.defended
Patch = pytest.MonkeyPatch


# --- CVE-2016-9962: the process that enters a container


def test_a_process_on_its_way_in_is_closed_to_the_others(bundle: Bundle, defended: bool, monkeypatch: Patch) -> None:
    """CVE-2016-9962. Witness: the flag "dumpable" stays."""
    bundle.process["capabilities"] = {kind: ["CAP_KILL"] for kind in ("bounding", "effective", "permitted")}
    bundle.shell(
        "while true; do for p in /proc/[0-9]*; do "
        "[ $p != /proc/1 ] && [ $p != /proc/$$ ] && for f in $p/fd/*; do "
        'n=$(readlink $f 2>/dev/null) && case $n in socket:*) echo "seen $n";; esac; done; done; done'
    )
    find_program, prctl = process.find_program, syscalls.prctl

    def slowly(wanted: dict[str, Any]) -> process.Program:
        time.sleep(0.5)
        return find_program(wanted)

    def without_dumpable(option: int, *values: int) -> int:
        return 0 if option == syscalls.PR_SET_DUMPABLE else prctl(option, *values)

    with bundle.captured() as capture:
        launched = bundle.runtime.create(bundle.id, str(bundle.directory), stdio=capture.stdio, spec=bundle.copied())
        bundle.runtime.start(bundle.id)
        monkeypatch.setattr(process, "find_program", slowly)
        if not defended:
            monkeypatch.setattr(syscalls, "prctl", without_dumpable)
        for _ in range(4):
            bundle.exec("true")
        bundle.runtime.kill(bundle.id, 9)
        wait(launched)
        assert ("seen" in capture.text()) is not defended


# --- CVE-2022-29162: inheritable capabilities

_NET_RAW = 13
_INHERITABLE_ONLY = b"\x00\x00\x00\x02" + bytes(4) + (1 << _NET_RAW).to_bytes(4, "little") + bytes(8)
"""struct vfs_cap_data, revision 2: permitted and inheritable, low words first."""


def test_a_user_gains_nothing_from_inheritable_file_capabilities(
    bundle: Bundle, defended: bool, monkeypatch: Patch
) -> None:
    """CVE-2022-29162: a file that raises what is inheritable. Witness: the bounding set is inheritable, as it was."""
    tool = bundle.rootfs / "bin/caps/grep"
    tool.parent.mkdir()
    shutil.copy(bundle.rootfs / "bin/busybox", tool)
    os.setxattr(tool, "security.capability", _INHERITABLE_ONLY)
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    bundle.process["noNewPrivileges"] = False
    for kind in ("bounding", "effective", "permitted"):
        bundle.process["capabilities"][kind] = ["CAP_NET_RAW"]
    bundle.process["args"] = ["/bin/caps/grep", "CapPrm", "/proc/self/status"]
    if not defended:
        made = capabilities.CapabilitySets.__init__

        def as_it_was(self: capabilities.CapabilitySets, wanted: dict[str, Any], usable: int) -> None:
            made(self, wanted, usable)
            self.inheritable = self.bounding

        monkeypatch.setattr(capabilities.CapabilitySets, "__init__", as_it_was)
    held = int(runs(bundle).split()[-1], 16)
    assert (held == 1 << _NET_RAW) is not defended


# --- groups of the caller, with and without a user namespace


@pytest.mark.parametrize("userns", [False, True], ids=["host-ids", "user-namespace"])
def test_the_callers_groups_open_no_file(bundle: Bundle, defended: bool, userns: bool, monkeypatch: Patch) -> None:
    """Witness: nobody calls setgroups, and a file of the host's group 42 can be read."""
    if userns:
        bundle.linux["namespaces"].append({"type": "user"})
    secret = bundle.rootfs / "etc/secret"
    secret.write_text("secret\n")
    os.chown(secret, 4242, 42)
    secret.chmod(0o040)
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    bundle.process["capabilities"] = {}
    bundle.shell("cat /etc/secret")

    def work() -> bool:
        os.setgroups([4, 42])
        if not defended:
            monkeypatch.setattr(os, "setgroups", lambda _: None)
        return "secret\n" in runs(bundle)

    assert in_child(work) is not defended


# --- exec into a container whose root was swapped


def test_exec_does_not_follow_a_swapped_rootfs(bundle: Bundle, defended: bool, monkeypatch: Patch) -> None:
    """Witness: exec enters the recorded path instead of the mount namespace."""
    launched = bundle.sleeping()
    aside, other = bundle.directory / "aside", bundle.directory / "other"
    shutil.copytree(bundle.rootfs, other, symlinks=True)
    (other / "mark-of-the-host").touch()
    bundle.rootfs.rename(aside)
    bundle.rootfs.symlink_to(other)
    if not defended:
        setns, recorded = syscalls.setns, state.load(str(bundle.state), bundle.id).rootfs

        def by_path(fd: int, kinds: int, what: str = "") -> None:
            setns(fd, kinds & ~syscalls.CLONE_NEWNS, what)
            os.chroot(recorded)
            os.chdir("/")

        monkeypatch.setattr(syscalls, "setns", by_path)
        monkeypatch.setattr(namespaces, "clone_into", lambda _, clone: clone())
    try:
        assert ("mark-of-the-host" in bundle.exec("ls", "/")[1]) is not defended
    finally:
        bundle.rootfs.unlink()
        aside.rename(bundle.rootfs)
    bundle.runtime.kill(bundle.id, 9)
    wait(launched)


# --- code of the image: a module imported after the change of root


def test_a_late_import_loads_nothing_of_the_image(bundle: Bundle, defended: bool, monkeypatch: Patch) -> None:
    """Witness: the search path of modules stays, and something is imported after the change of root."""
    library = bundle.rootfs / os.path.dirname(os.__file__).lstrip("/")
    library.mkdir(parents=True)
    (library / "late_module.py").write_text("open('/trap', 'w').write('loaded')\n")
    bundle.spec["root"]["readonly"] = False
    bundle.shell("true")
    find_program, search, finders = process.find_program, list(sys.path), list(sys.meta_path)

    def with_an_import(wanted: dict[str, Any]) -> process.Program:
        if not defended:  # undo what ``child.detach`` did
            sys.path[:], sys.meta_path[:] = search, finders
        with contextlib.suppress(ImportError):
            __import__("late_module")
        return find_program(wanted)

    monkeypatch.setattr(process, "find_program", with_an_import)
    runs(bundle)
    assert (bundle.rootfs / "trap").exists() is not defended


# --- hostile config.json


@pytest.fixture
def unchecked(defended: bool, monkeypatch: Patch) -> Iterator[None]:
    """Takes the checks of a spec out for the witness."""
    if not defended:
        monkeypatch.setattr(shape, "check", lambda *_: None)
        monkeypatch.setattr(spec, "validate_spec", lambda _: None)
    yield


@pytest.mark.usefixtures("unchecked")
def test_a_hostile_config_gives_a_sentence_and_leaves_nothing(bundle: Bundle, defended: bool) -> None:
    """Witness: the spec is used as it is; most documents do harm there: a traceback, or a container made of them."""
    hurt = []
    for name, harm in hostile_specs.DOCUMENTS.items():
        document = hostile_specs.changed(bundle.copied(), harm)
        (bundle.directory / "config.json").write_text(json.dumps(document))
        try:
            launched = bundle.runtime.create(bundle.id, str(bundle.directory), spec=document)
        except RuntimeFailure as error:
            assert str(error)
        except Exception:  # what the witness does with it is not ours to choose
            hurt.append(name)
        else:
            hurt.append(name)
            bundle.runtime.delete(bundle.id, force=True)
            wait(launched)
        assert not defended or not cgroups_of(bundle.id)
    assert (len(hurt) > len(hostile_specs.DOCUMENTS) // 2) is not defended, hurt
    assert not defended or not hurt
