"""Who a process in a container is: capabilities, groups, users and roots that attacks on other runtimes got wrong."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runc_py.errors import InvalidSpec
from tests.integration.runc_py import conftest
from tests.integration.runc_py.conftest import Bundle

pytestmark = pytest.mark.root

bundle = conftest.bundle
busybox_root = conftest.busybox_root
STATUS = "grep -E '^(Cap|Groups)' /proc/self/status"


def fields(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def in_child(work: Callable[[], None]) -> None:
    """Run ``work`` in a process that may change itself."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_inheritable_capabilities_are_empty(bundle: Bundle) -> None:
    """CVE-2022-29162: inheritable ones give files with inheritable bits more than the user should have."""
    bundle.process["capabilities"]["ambient"] = ["CAP_KILL"]
    bundle.sleeping()
    for found in (bundle.exec("sh", "-c", STATUS), bundle.exec("sh", "-c", STATUS, user={"uid": 1000, "gid": 1000})):
        assert found[0] == 0
        assert int(fields(found[1])["CapInh"], 16) == 0
        assert int(fields(found[1])["CapAmb"], 16) == 0
    done = bundle.command("exec", "--cap", "CAP_NET_RAW", bundle.id, "sh", "-c", STATUS)
    assert int(fields(done.stdout)["CapInh"], 16) == 0
    assert int(fields(done.stdout)["CapEff"], 16) >> 13 & 1
    done = bundle.command("exec", "--cap", "CAP_NET_ROW", bundle.id, "true")
    assert (done.returncode, "--cap CAP_NET_ROW: unknown capability" in done.stderr) == (255, True), done.stderr


@pytest.mark.parametrize("userns", [False, True], ids=["host-ids", "user-namespace"])
def test_groups_of_the_caller_are_dropped(bundle: Bundle, userns: bool) -> None:
    """They could be the host's docker or shadow: with a mapping that has them, they would count."""
    if userns:
        bundle.linux["namespaces"].append({"type": "user"})
    bundle.process["user"]["additionalGids"] = [77]

    def work() -> None:
        os.setgroups([4, 42, 100])
        assert fields(bundle.output(STATUS))["Groups"] == "77"

    in_child(work)


def test_setgroups_is_denied_to_a_mapping_without_rights(bundle: Bundle) -> None:
    """user_namespaces(7): without "deny", a user could drop a group that a file's mode excludes."""
    from runc_py import namespaces, syscalls

    def work() -> None:
        os.setgroups([])
        os.setresgid(1234, 1234, 1234)
        os.setresuid(1234, 1234, 1234)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # as in a process that never was root: it owns its /proc files
        pid, pidfd = syscalls.clone(syscalls.CLONE_NEWUSER)
        if pid == 0:
            os.read(os.pipe()[0], 1)
        try:
            maps = [{"containerID": 0, "hostID": 1234, "size": 1}]
            namespaces.write_id_maps(pid, {"uidMappings": maps, "gidMappings": maps})
            assert Path(f"/proc/{pid}/setgroups").read_text().strip() == "deny"
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            os.close(pidfd)

    in_child(work)


def test_a_swapped_rootfs_does_not_lead_exec_to_the_host(bundle: Bundle) -> None:
    bundle.sleeping()
    aside = bundle.directory / "aside"
    bundle.rootfs.rename(aside)
    bundle.rootfs.symlink_to("/")
    try:
        code, text = bundle.exec("ls", "/")
        assert code == 0
        assert "bin" in text.split() and "boot" not in text.split()
    finally:
        bundle.rootfs.unlink()
        aside.rename(bundle.rootfs)


def test_sysctls_reach_the_kernel_and_no_file_of_the_image(bundle: Bundle) -> None:
    """CVE-2025-52881: whatever is mounted on /proc, a sysctl is written to a procfs of the runtime's own."""
    fake = bundle.directory / "fake"
    (fake / "sys/net/ipv4").mkdir(parents=True)
    (fake / "sys/net/ipv4/ip_forward").write_text("untouched")
    bundle.spec["mounts"] = [entry for entry in bundle.spec["mounts"] if entry["destination"] != "/proc"]
    bundle.spec["mounts"].append({"destination": "/proc", "type": "bind", "source": str(fake), "options": ["bind"]})
    bundle.linux.update(maskedPaths=[], readonlyPaths=[], sysctl={"net.ipv4.ip_forward": "1"})
    launched = bundle.sleeping()
    command = ["nsenter", "--net", "--target", str(launched.pid), "cat", "/proc/sys/net/ipv4/ip_forward"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"
    assert (fake / "sys/net/ipv4/ip_forward").read_text() == "untouched"


@pytest.mark.parametrize("user", ["0x3e8", "+1000", " 1000", "1_000", "root", "1000:", "-1", "١٠", "4294967295", ""])
def test_odd_user_strings_never_become_root(bundle: Bundle, user: str) -> None:
    """CVE-2026-30892: a lenient number parser made 0 of them."""
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    bundle.sleeping()
    done = bundle.command("exec", f"--user={user}", bundle.id, "id", "-u")
    assert done.stdout in ("", "1000\n")
    assert (done.returncode, done.stdout) == ((0, "1000\n") if not user else (255, ""))


def test_mapping_lists_too_long_for_the_kernel(bundle: Bundle) -> None:
    """CVE-2021-43784: a length that wrapped dropped what came after it."""
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux["uidMappings"] = [{"containerID": n, "hostID": n, "size": 1} for n in range(341)]
    bundle.linux["gidMappings"] = [{"containerID": 0, "hostID": 0, "size": 1}]
    with pytest.raises(InvalidSpec, match=r"linux\.uidMappings: 341 entries"):
        bundle.in_process()


def test_a_container_that_is_everywhere_root_sees_no_masked_file(bundle: Bundle) -> None:
    bundle.linux["namespaces"].append({"type": "user"})
    text = bundle.output("wc -c /proc/keys; echo x > /proc/sys/kernel/domainname; id -u")
    assert "0 /proc/keys" in text and "Read-only file system" in text
    assert text.split()[-1] == "0"
