"""Attacks on the making of a container that worked on other runtimes, each with a witness (see ``witness``)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runc_py import console, init, operations, paths, process, rootfs, shape, syscalls
from runc_py.errors import RuntimeFailure
from tests.integration.runc_py import conftest
from tests.integration.runc_py.conftest import REPOSITORY, Bundle, wait
from tests.security import witness
from tests.security.witness import by_peer, runs, without_mount
from tests.support.host import wait_for

pytestmark = pytest.mark.root

bundle = conftest.bundle
busybox_root = conftest.busybox_root
defended = witness.defended
peer = witness.peer
Patch = pytest.MonkeyPatch


# --- CVE-2019-5736: the runtime's own file, through /proc/self/exe


@pytest.fixture
def interpreter(tmp_path: Path) -> Path:
    """A copy of the interpreter, for an attack that works overwrites it."""
    real = os.path.realpath(sys.executable)
    copy = tmp_path / "interpreter/bin/python3"
    copy.parent.mkdir(parents=True)
    shutil.copy(real, copy)
    (copy.parents[1] / "pyvenv.cfg").write_text(f"home = {os.path.dirname(real)}\n")
    return copy


def give_libraries(root: Path) -> None:
    """What a hostile image ships: the libraries with which the host's interpreter starts in it."""
    linked = subprocess.run(["ldd", os.path.realpath(sys.executable)], capture_output=True, text=True, check=True)
    for path in (word for word in linked.stdout.split() if word.startswith("/")):
        target = root / ("lib64" if "ld-linux" in path else "lib") / os.path.basename(path)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    library = root / "python/lib/python{}.{}".format(*sys.version_info)
    library.mkdir(parents=True)
    shutil.copytree(Path(os.__file__).parent / "encodings", library / "encodings")
    (library / "os.py").touch()


_OVERWRITE = "(echo pwned > /proc/self/fd/9) 2>/dev/null && exit; sleep 0.1"
_STAGE = f"""
import posix
posix.dup2(posix.open("/proc/self/exe", 0), 9, True)
posix.execv("/bin/sh", ["sh", "-c", "for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do {_OVERWRITE}; done"])
"""


def test_the_runtimes_file_is_not_overwritten(bundle: Bundle, interpreter: Path, defended: bool) -> None:
    """CVE-2019-5736. Witness: the command without ``seal``."""
    give_libraries(bundle.rootfs)
    bundle.process["args"] = ["/proc/self/exe", "-S", "-c", _STAGE]
    bundle.process["env"] = ["LD_LIBRARY_PATH=/lib", "PYTHONHOME=/python", "PATH=/bin"]
    bundle.save()
    before = hashlib.sha256(interpreter.read_bytes()).digest()
    hole = "" if defended else "from runc_py import seal; seal.ensure_sealed = lambda: None; "
    code = f"import sys; sys.path.append({str(REPOSITORY)!r}); {hole}from runc_py.main import main; main()"
    for arguments in (["create", bundle.id], ["start", bundle.id]):
        command = [str(interpreter), "-I", "-S", "-c", code, "--root", str(bundle.state), *arguments]
        with (bundle.directory / "output").open("a") as output:
            subprocess.run(
                command, cwd=bundle.directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True
            )
    wait_for(lambda: bundle.runtime.state(bundle.id)["status"] == "stopped", "the attack to end", 60)
    assert (hashlib.sha256(interpreter.read_bytes()).digest() == before) is defended


# --- CVE-2021-30465: a directory that becomes a symlink between check and use


def check_then_use(root: paths.Root, path: str, mode: int = 0o755) -> int:
    """How runtimes made mount points before: the path is resolved inside the root, and then used as a string."""
    top = os.readlink(f"/proc/self/fd/{root.fd}")
    checked = os.path.realpath(f"{top}/{path}")
    if not checked.startswith(top):
        raise RuntimeFailure("outside")
    time.sleep(0.001)
    os.makedirs(f"{top}/{path}", mode, exist_ok=True)
    return os.open(f"{top}/{path}", os.O_PATH | os.O_DIRECTORY)


def test_a_swapped_directory_does_not_lead_mounts_out(bundle: Bundle, defended: bool, monkeypatch: Patch) -> None:
    """CVE-2021-30465. Witness: paths that are checked and then used, as strings."""
    volume, outside = bundle.directory / "volume", bundle.directory / "outside"
    (volume / "dir").mkdir(parents=True)
    outside.mkdir()
    (volume / "link").symlink_to(outside)
    bundle.spec["mounts"] += [
        {"destination": "/volume", "type": "bind", "source": str(volume), "options": ["bind"]},
        {"destination": "/volume/dir/made", "type": "tmpfs", "source": "tmpfs"},
    ]
    bundle.spec["root"]["readonly"] = False
    bundle.shell("true")
    if not defended:
        monkeypatch.setattr(paths.Root, "make_directory", check_then_use)
    swapper = os.fork()
    if swapper == 0:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            syscalls._libc.renameat2(-100, bytes(volume / "dir"), -100, bytes(volume / "link"), 2)
            time.sleep(0.0005)
        os._exit(0)
    try:
        for _ in range(25 if defended else 200):
            runs(bundle)
            if any(outside.iterdir()):
                break
    finally:
        os.kill(swapper, 9)
        os.waitpid(swapper, 0)
    assert any(outside.iterdir()) is not defended


# --- CVE-2019-19921 and its relatives: /proc of the image


def test_proc_is_not_mounted_behind_a_link_of_the_image(bundle: Bundle, defended: bool, monkeypatch: Patch) -> None:
    """CVE-2019-16884, -2019-19921, -2023-27561. Witness: proc mounted like any other filesystem."""
    (bundle.rootfs / "proc").rmdir()
    (bundle.rootfs / "proc").symlink_to("/tmp")
    bundle.linux.update(maskedPaths=[], readonlyPaths=[])
    bundle.shell("[ -h /proc ] && [ -e /tmp/self/exe ] && echo fooled")
    if not defended:
        monkeypatch.setattr(operations, "_ordinary_directory", lambda root, path, kind: root.make_directory(path))
    assert (runs(bundle) == "fooled\n") is not defended


# --- CVE-2024-21626: a leaked descriptor as working directory


def test_a_leaked_descriptor_is_no_way_out(bundle: Bundle, defended: bool, monkeypatch: Patch) -> None:
    """CVE-2024-21626. Witness: descriptors stay open and the working directory is not looked at."""
    if not defended:
        monkeypatch.setattr(syscalls, "close_range", lambda *_, **__: None)
        monkeypatch.setattr(process, "enter_directory", os.chdir)
    (bundle.directory / "mark-of-the-host").touch()
    leaked = os.open(bundle.directory, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        found = False
        for number in range(3, leaked + 3):
            bundle.process["cwd"] = f"/proc/self/fd/{number}"
            bundle.shell("ls . ..")
            found = found or "mark-of-the-host" in runs(bundle)
        bundle.process["cwd"] = "/"
        bundle.shell(f"ls /proc/self/fd/{leaked}/ 2>/dev/null || true")
        found = found or "mark-of-the-host" in runs(bundle)
    finally:
        os.close(leaked)
    assert found is not defended


# --- CVE-2025-31133: masks made of a /dev/null that is something else


def mask_gadget(bundle: Bundle) -> None:
    """The image's /dev/null leads to a file of the attacker's, and a secret is to be masked with it."""
    without_mount(bundle, "/dev")
    (bundle.rootfs / "etc/mine").write_text("chosen by the attacker\n")
    (bundle.rootfs / "dev/null").symlink_to("/etc/mine")
    (bundle.rootfs / "etc/secret").write_text("secret\n")
    bundle.linux["maskedPaths"] = ["/etc/secret"]
    # The exit status tells: runc also takes the swapped file for standard output.
    bundle.shell('[ "$(head -c 6 /etc/secret)" = chosen ] && exit 42')


def null_by_name(root: paths.Root) -> int:
    return root.open("/dev/null")


def tolerant_device(self: operations.MakeDevice, root: paths.Root) -> None:
    """As runtimes made devices: what is there already will do."""
    if root.open_or_none(os.path.dirname(self.path) + "/null", os.O_PATH | os.O_NOFOLLOW) is None:
        _make_device(self, root)


_make_device = operations.MakeDevice.execute


def test_a_swapped_null_device_masks_nothing(bundle: Bundle, defended: bool, monkeypatch: Patch) -> None:
    """CVE-2025-31133. Witness: whatever is called /dev/null is bound over masked files."""
    mask_gadget(bundle)
    if not defended:
        monkeypatch.setattr(operations.MakeDevice, "execute", tolerant_device)
        monkeypatch.setattr(operations, "_null_device", null_by_name)
    try:
        code = bundle.in_process()[0]
    except RuntimeFailure:
        code = 1
    assert (code == 42) is not defended


def test_a_peer_masks_with_a_swapped_null_device(bundle: Bundle, peer: str) -> None:
    if peer == "crun":
        pytest.skip("crun 1.8.1 does not take a link for the device")
    mask_gadget(bundle)
    assert by_peer(bundle, peer).returncode == 42


# --- CVE-2025-52565: the console bound to where a link leads


def console_gadget(bundle: Bundle) -> None:
    """The image's /dev/console leads to a file that the console is not to be mounted on."""
    without_mount(bundle, "/dev")
    (bundle.rootfs / "dev/pts").mkdir()
    options = ["newinstance", "ptmxmode=0666"]
    mount = {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": options}
    bundle.spec["mounts"].append(mount)
    bundle.process["terminal"] = True
    (bundle.rootfs / "etc/victim").write_text("victim")
    (bundle.rootfs / "dev/console").symlink_to("/etc/victim")
    bundle.shell("[ -c /etc/victim ] && echo moved")


def console_by_name(root: paths.Root, slave: int) -> None:
    target = root.make_file("/dev/console")
    mount = syscalls.open_tree(slave, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
    syscalls.move_mount(mount, target, "/dev/console")
    os.close(mount)
    os.close(target)


def in_terminal(bundle: Bundle) -> str:
    """Run the container with a terminal; what it wrote, "" when it was refused."""
    bundle.save()
    try:
        launched = bundle.runtime.create(bundle.id, str(bundle.directory), spec=bundle.copied())
    except RuntimeFailure:
        return ""
    assert launched.console is not None
    bundle.runtime.start(bundle.id)
    text = b""
    with contextlib.suppress(OSError):  # EIO is a terminal's end of file
        while data := os.read(launched.console, 4096):
            text += data
    os.close(launched.console)
    wait(launched)
    bundle.runtime.delete(bundle.id, force=True)
    return text.decode()


def test_the_console_does_not_follow_a_link(bundle: Bundle, defended: bool, monkeypatch: Patch) -> None:
    """CVE-2025-52565. Witness: the console's path is followed inside the container."""
    console_gadget(bundle)
    if not defended:
        monkeypatch.setattr(console, "bind_console", console_by_name)
    assert ("moved" in in_terminal(bundle)) is not defended


def test_a_peers_console_follows_a_link(bundle: Bundle, peer: str) -> None:
    if not shutil.which("script"):
        pytest.skip("needs the program script, which gives a peer a terminal")
    console_gadget(bundle)
    assert "moved" in by_peer(bundle, peer, "script", "-qec").stdout


# --- CVE-2025-52881: writes to a procfs that is none


def fake_procfs(bundle: Bundle) -> Path:
    """An image whose /proc is files, and a spec that mounts none; the file that a sysctl must not be written to."""
    without_mount(bundle, "/proc")
    bundle.linux.update(maskedPaths=[], readonlyPaths=[], sysctl={"net.ipv4.ip_forward": "1"})
    file = bundle.rootfs / "proc/sys/net/ipv4/ip_forward"
    file.parent.mkdir(parents=True)
    file.write_text("untouched")
    bundle.shell("true")
    return file


def write_by_name(_: int, path: str, value: str) -> None:
    Path(f"/proc/{path}").write_text(value)


def sysctl_by_name(wanted: dict[str, str]) -> None:
    for name, value in wanted.items():
        write_by_name(-1, f"sys/{name.replace('.', '/')}", value)


def test_sysctls_are_not_written_to_the_images_files(bundle: Bundle, defended: bool, monkeypatch: Patch) -> None:
    """CVE-2025-52881. Witness: /proc is written to by name, after the change of root."""
    file = fake_procfs(bundle)
    if not defended:
        change_root = rootfs.change_root

        def then_write(root: paths.Root, **options: Any) -> None:
            change_root(root, **options)
            sysctl_by_name(bundle.linux["sysctl"])

        monkeypatch.setattr(init, "_set_sysctls", lambda _: None)
        monkeypatch.setattr(rootfs, "change_root", then_write)
    runs(bundle)
    assert (file.read_text() == "1") is not defended


def test_a_peer_writes_sysctls_to_the_images_files(bundle: Bundle, peer: str) -> None:
    if peer == "crun":
        pytest.skip("crun checks that it is a procfs")
    file = fake_procfs(bundle)
    by_peer(bundle, peer)
    assert file.read_text() == "1"


def test_every_defence_that_was_taken_out_is_a_real_name() -> None:
    """A witness must not stay green because the thing it takes out was renamed."""
    for owner, name in (
        (operations, "_ordinary_directory"),
        (operations, "_null_device"),
        (console, "bind_console"),
        (init, "_set_sysctls"),
        (shape, "check"),
    ):
        assert callable(getattr(owner, name))
