"""Parts of the specification beyond the usual: each seen from inside a container or in what the host then has."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from runc_py import netdevices, syscalls
from runc_py.errors import InvalidSpec, RuntimeFailure
from tests.integration.runc_py.conftest import REPOSITORY, Bundle, wait

pytestmark = pytest.mark.root

FULL = [{"containerID": 0, "hostID": 0, "size": 4294967295}]


def test_scheduler_and_io_priority(bundle: Bundle) -> None:
    bundle.process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    bundle.process["ioPriority"] = {"class": "IOPRIO_CLASS_IDLE", "priority": 0}
    launched = bundle.sleeping()
    fields = Path(f"/proc/{launched.pid}/stat").read_text().rpartition(")")[2].split()
    assert (fields[16], fields[38]) == ("7", "3")  # nice and policy, proc_pid_stat(5)
    assert os.sched_getscheduler(launched.pid) == os.SCHED_BATCH


def test_exec_affinity_and_scheduler(bundle: Bundle) -> None:
    bundle.sleeping()
    processor = min(os.sched_getaffinity(0))
    code, text = bundle.exec(
        *("grep", "Cpus_allowed_list", "/proc/self/status"), execCPUAffinity={"final": str(processor)}
    )
    assert (code, text.split()[-1]) == (0, str(processor))


def test_memory_policy(bundle: Bundle) -> None:
    if not os.path.exists("/proc/self/numa_maps"):
        pytest.skip("this kernel has no NUMA")
    bundle.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0"}
    assert " bind:0 " in bundle.output("cat /proc/self/numa_maps")


@pytest.mark.parametrize("userns", [False, True], ids=["host-ids", "user-namespace"])
def test_id_mapped_mount(bundle: Bundle, userns: bool) -> None:
    source = bundle.directory / "shared"
    source.mkdir()
    (source / "file").write_text("")
    if userns:
        bundle.linux["namespaces"].append({"type": "user"})
        bundle.linux["uidMappings"] = bundle.linux["gidMappings"] = FULL
    mappings = [{"containerID": 0, "hostID": 1000, "size": 5}]
    bundle.spec["mounts"].append(
        {
            "destination": "/mnt",
            "type": "bind",
            "source": str(source),
            "options": ["bind", "idmap"],
            "uidMappings": mappings,
            "gidMappings": mappings,
        }
    )
    assert bundle.output("ls -ln /mnt/file").split()[2:4] == ["1000", "1000"]


def test_only_bind_mounts_can_be_id_mapped(bundle: Bundle) -> None:
    bundle.spec["mounts"].append({"destination": "/mnt", "type": "tmpfs", "options": ["idmap"]})
    with pytest.raises(InvalidSpec, match="only bind mounts"):
        bundle.in_process()


def test_a_bind_source_that_the_mapped_root_cannot_reach(bundle: Bundle) -> None:
    hidden = bundle.directory / "hidden"
    (hidden / "inner").mkdir(parents=True)
    (hidden / "inner/file").write_text("seen")
    hidden.chmod(0)
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux["uidMappings"] = bundle.linux["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 1000}]
    subprocess.run(["chown", "-R", "100000:100000", str(bundle.rootfs)], check=True)
    for parent in bundle.rootfs.parents:
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    bundle.spec["mounts"].append(
        {"destination": "/mnt", "type": "bind", "source": str(hidden / "inner"), "options": ["bind", "ro"]}
    )
    assert bundle.output("cat /mnt/file") == "seen"


def test_devices_under_a_user_namespace_have_their_owner(bundle: Bundle) -> None:
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux["uidMappings"] = bundle.linux["gidMappings"] = FULL
    bundle.linux["devices"] = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o642, "uid": 10, "gid": 11}
    ]
    line = bundle.output("ls -ln /dev/mine && echo x > /dev/mine").split()
    assert (line[0], line[2], line[3], line[4], line[5]) == ("crw-r---w-", "10", "11", "1,", "3")


def test_seccomp_agent_decides(bundle: Bundle) -> None:
    path = bundle.directory / "agent.sock"
    bundle.process["noNewPrivileges"] = False
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": str(path),
        "listenerMetadata": "what I am",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    }
    got: list[Any] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def agent() -> None:
            connection, _ = listener.accept()
            with connection:
                data, descriptors, _, _ = socket.recv_fds(connection, 65536, 1)
                got.append((json.loads(data), os.readlink(f"/proc/self/fd/{descriptors[0]}")))
                os.close(descriptors[0])  # with nobody to decide, the kernel answers ENOSYS

        thread = threading.Thread(target=agent)
        thread.start()
        bundle.shell("mkdir /tmp/x")
        done = bundle.command("run", bundle.id)
        thread.join(10)
    assert "Function not implemented" in done.stderr, done.stderr
    (message, link) = got[0]
    assert "seccomp" in link
    assert (message["fds"], message["metadata"]) == (["seccompFd"], "what I am")
    assert (message["state"]["id"], message["state"]["status"]) == (bundle.id, "creating")
    assert message["pid"] == message["state"]["pid"]


def test_seccomp_agent_that_is_not_there(bundle: Bundle) -> None:
    bundle.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/nowhere.sock"}
    with pytest.raises(RuntimeFailure, match=r"listenerPath: no agent answers on /nowhere\.sock"):
        bundle.in_process()
    for wrong in ({"syscalls": [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]}, {"listenerPath": ""}):
        profile = {"syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}], **bundle.linux["seccomp"], **wrong}
        bundle.spec["linux"]["seccomp"] = profile
        with pytest.raises(InvalidSpec, match=r"linux\.seccomp"):
            bundle.in_process()


def test_mounts_of_a_running_container(bundle: Bundle) -> None:
    source = bundle.directory / "source"
    source.mkdir()
    (source / "file").write_text("here")
    bundle.spec["root"]["readonly"] = False
    bundle.sleeping()
    entries: list[dict[str, Any]] = [
        {"destination": "/new/place", "type": "bind", "source": str(source), "options": ["bind", "ro"]},
        {"destination": "/new/memory", "type": "tmpfs", "source": "tmpfs"},
    ]
    bundle.runtime.add_mounts(bundle.id, entries)
    assert bundle.exec("cat", "/new/place/file") == (0, "here")
    assert "/new/memory tmpfs" in bundle.exec("cat", "/proc/mounts")[1]
    bundle.runtime.remove_mounts(bundle.id, entries)
    assert "/new/" not in bundle.exec("cat", "/proc/mounts")[1]
    with pytest.raises(RuntimeFailure, match="inside /proc"):
        bundle.runtime.add_mounts(bundle.id, [{**entries[0], "destination": "/proc/sys"}])


def test_checkpoint_without_criu_says_what_to_install(bundle: Bundle) -> None:
    bundle.sleeping()
    for command in ("checkpoint", "restore"):
        done = bundle.command("--criu", "/no/such/criu", command, bundle.id)
        assert done.returncode == 1
        assert "need the program /no/such/criu: install the package criu" in done.stderr
    assert bundle.runtime.state(bundle.id)["status"] == "running"


def test_a_failed_restore_leaves_nothing(bundle: Bundle) -> None:
    """With a criu that fails, as it does for images that are none."""
    images = bundle.directory / "images"
    images.mkdir()
    (images / "descriptors.json").write_text('["/dev/null", "/dev/null", "/dev/null"]')
    done = bundle.command("--criu", "/bin/false", "restore", "--detach", "--image-path", str(images), bundle.id)
    assert (done.returncode, "restore: criu failed (1)" in done.stderr) == (1, True), done.stderr
    assert bundle.runtime.list() == []


def test_delete_by_regular_expression(bundle: Bundle) -> None:
    bundle.sleeping()
    assert bundle.command("delete", "--force", "--regex", f"^{bundle.id[:-2]}").returncode == 0
    assert bundle.runtime.list() == []
    assert bundle.command("delete", "--regex", "(").returncode == 1


def test_events_until_the_end(bundle: Bundle) -> None:
    launched = bundle.sleeping()
    command = [sys.executable, "-m", "runc_py.main", "--root", str(bundle.state), "events", "--interval", "100ms"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([*command, bundle.id], stdout=subprocess.PIPE, text=True, env=environment) as events:
        assert events.stdout is not None
        lines = [json.loads(events.stdout.readline()) for _ in range(3)]
        bundle.runtime.kill(bundle.id, 9)
        wait(launched)
        assert events.wait(10) == 0
        events.stdout.close()
    assert {(line["type"], line["id"]) for line in lines} == {("stats", bundle.id)}
    assert lines[0]["data"]["memory"]["usage"]["usage"] > 0


def test_readiness_is_passed_on_to_the_service_manager(bundle: Bundle) -> None:
    path = bundle.directory / "notify.sock"
    bundle.spec["root"]["readonly"] = False
    bundle.shell(f"echo $NOTIFY_SOCKET; ls {path}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        bundle.save()
        command = [sys.executable, "-m", "runc_py.main", "--root", str(bundle.state), "run", bundle.id]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NOTIFY_SOCKET": str(path)}
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=bundle.directory, env=environment, timeout=30, check=False
        )
        assert done.stdout.split() == [f"{path}/notify", "notify"], done.stderr
        bundle.process["args"] = ["sleep", "1000"]
        bundle.save()
        command[-2:] = ["run", "--detach", bundle.id]
        with subprocess.Popen(command, cwd=bundle.directory, env=environment, stdout=subprocess.DEVNULL) as running:
            inner = f"{bundle.state}/{bundle.id}/notify/notify"
            for _ in range(500):
                if os.path.exists(inner) and bundle.runtime.state(bundle.id)["status"] == "running":
                    break
                threading.Event().wait(0.01)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
                service.sendto(b"STATUS=starting", inner)
                service.sendto(b"READY=1", inner)
            manager.settimeout(10)
            pid = bundle.runtime.state(bundle.id)["pid"]
            assert manager.recv(4096) == b"READY=1\nMAINPID=%d\n" % pid
            assert running.wait(10) == 0


def test_network_device_moves_with_its_address(bundle: Bundle) -> None:
    """In a network namespace of the test's own, with one end of a veth pair."""

    def inside() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        for line in (
            "link add host0 type veth peer name host1",
            "address add 192.0.2.7/24 dev host1",
            "-6 address add 2001:db8::7/64 dev host1 nodad",
            "link set host1 up",
        ):
            subprocess.run(["ip", *line.split()], check=True)
        bundle.linux["netDevices"] = {"host1": {"name": "eth0"}}
        text = bundle.output("ip address show eth0")
        assert "192.0.2.7/24" in text and "2001:db8::7/64" in text and "UP" in text, text
        assert "host1" not in subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout

    pid = os.fork()
    if pid == 0:
        try:
            inside()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("name", ["", "a/b", "x" * 16, "a b", "..", "a:1"])
def test_names_of_network_devices(name: str) -> None:
    with pytest.raises(InvalidSpec, match=r"linux\.netDevices"):
        netdevices.check_net_devices({"eth0": {"name": name} if name else 5}, frozenset({"network"}))


def test_rdt_without_hardware_says_so(bundle: Bundle) -> None:
    if " - resctrl " in Path("/proc/self/mountinfo").read_text():
        pytest.skip("this host has resctrl mounted")
    bundle.linux["intelRdt"] = {"l3CacheSchema": "L3:0=f"}
    with pytest.raises(RuntimeFailure, match="no resctrl filesystem"):
        bundle.in_process()


def test_hooks_write_where_annotations_say(bundle: Bundle) -> None:
    out = bundle.directory / "out"
    bundle.spec["annotations"] = {"run.oci.hooks.stdout": str(out)}
    bundle.spec["hooks"] = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind}"], "env": ["PATH=/bin:/usr/bin"]}]
        for kind in ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    }
    bundle.output("true")
    assert out.read_text().split() == ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
