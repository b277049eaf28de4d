"""A container as its own processes see it: namespaces, user, limits, mounts, devices, environment."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from runc_py.errors import ContainerExists, ContainerNotFound, InvalidSpec, InvalidState, ProcessFailure, RuntimeFailure
from runc_py.runtime import RootfsMount, Stdio
from tests.integration.runc_py.conftest import Ahead, Bundle, wait

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True, params=["cloned", "waiting"])
def _init(request: pytest.FixtureRequest, bundle: Bundle) -> None:
    """Whether a container's init is made for it or waits for it, nothing in it is different."""
    if request.param == "waiting":
        bundle.runtime = Ahead(bundle.runtime.root)


def test_exit_codes_come_through(bundle: Bundle) -> None:
    bundle.shell("exit 7")
    assert bundle.in_process()[0] == 7
    bundle.shell("(sh -c 'kill -9 $$'); exit $?")
    assert bundle.in_process()[0] == 137


def test_all_namespaces_are_new_and_init_is_process_1(bundle: Bundle) -> None:
    bundle.linux["namespaces"].append({"type": "time"})
    kinds = ("pid", "net", "ipc", "uts", "mnt", "cgroup", "time")
    output = bundle.output(f"for k in {' '.join(kinds)}; do readlink /proc/self/ns/$k; done; echo $$").split()
    assert output[-1] == "1"
    for kind, link in zip(kinds, output[:-1], strict=True):
        assert link.startswith(kind)
        assert link != os.readlink(f"/proc/self/ns/{kind}")


def test_namespaces_are_joined_by_path(bundle: Bundle) -> None:
    holder = os.fork()
    if holder == 0:
        from runc_py import syscalls

        syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWPID)
        inner = os.fork()
        if inner == 0:
            time.sleep(60)
            os._exit(0)
        os.waitpid(inner, 0)
        os._exit(0)
    try:
        deadline = time.monotonic() + 5
        children = Path(f"/proc/{holder}/task/{holder}/children")
        while not (found := children.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.01)
        inner = int(found[0])
        names = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}
        expected = [os.readlink(f"/proc/{inner}/ns/{name}") for name in names.values()]
        bundle.spec.pop("hostname")
        bundle.linux["namespaces"] = [{"type": "mount"}, {"type": "cgroup"}] + [
            {"type": kind, "path": f"/proc/{inner}/ns/{name}"} for kind, name in names.items()
        ]
        own_before = os.readlink("/proc/self/ns/pid_for_children")
        output = bundle.output("for k in net ipc uts pid; do readlink /proc/self/ns/$k; done")
        assert output.split() == expected
        assert os.readlink("/proc/self/ns/pid_for_children") == own_before
    finally:
        os.kill(inner, 9)
        os.waitpid(holder, 0)


def test_user_namespace_maps_ids(bundle: Bundle) -> None:
    bundle.linux["namespaces"].append({"type": "user"})
    mapping = [{"containerID": 0, "hostID": 200000, "size": 65536}]
    bundle.linux.update(uidMappings=mapping, gidMappings=mapping)
    bundle.linux.pop("resources")
    for path in bundle.directory.parents:
        if str(path).startswith("/tmp/"):
            path.chmod(path.stat().st_mode | 0o011)
    bundle.directory.chmod(0o711)
    output = bundle.output("id -u; cat /proc/self/uid_map; ls -ln /dev/null | cut -c1; echo x > /dev/null && echo ok")
    assert output.split() == ["0", "0", "200000", "65536", "c", "ok"]
    bundle.sleeping()
    code, text = bundle.exec("sh", "-c", "id -u; readlink /proc/self/ns/user")
    assert code == 0, text
    code, text = bundle.exec("cat", "/proc/self/uid_map")
    assert text.split() == ["0", "200000", "65536"]


def test_time_offsets(bundle: Bundle) -> None:
    bundle.linux["namespaces"].append({"type": "time"})
    bundle.linux["timeOffsets"] = {"boottime": {"secs": 1000000, "nanosecs": 0}}
    host = float(Path("/proc/uptime").read_text().split()[0])
    assert float(bundle.output("cat /proc/uptime").split()[0]) > host + 999_000


def test_user_groups_and_capabilities(bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o077}
    text = bundle.output("id -u; id -g; id -G; umask; echo $HOME; grep -E '^Cap|NoNew|^Groups' /proc/self/status")
    words = text.split()
    assert words[:7] == ["1000", "1001", "1001", "5", "6", "0077", "/home/ann"]
    status = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    assert {name: value.strip() for name, value in status.items()} == {
        "Groups": "5 6",
        "CapInh": "0" * 16,
        "CapPrm": "0" * 16,
        "CapEff": "0" * 16,
        "CapBnd": "0000000020000420",
        "CapAmb": "0" * 16,
        "NoNewPrivs": "1",
    }


def test_ambient_capabilities_reach_a_normal_user(bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    bundle.process["capabilities"]["inheritable"] = ["CAP_KILL"]
    bundle.process["capabilities"]["ambient"] = ["CAP_KILL"]
    text = bundle.output("grep -E '^Cap(Eff|Amb)' /proc/self/status")
    assert text.split()[1::2] == ["0000000000000020", "0000000000000020"]


def test_stdio_belongs_to_the_user(bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    assert bundle.output("echo hello >> /dev/stdout; echo more >> /dev/stderr").split() == ["hello", "more"]


def test_mounts_devices_and_links(bundle: Bundle) -> None:
    mounts = {line.split()[2]: line.split() for line in bundle.output("mount").splitlines()}
    assert mounts["/proc"][4] == "proc"
    assert mounts["/dev"][4] == "tmpfs"
    assert mounts["/dev/pts"][4] == "devpts"
    assert mounts["/dev/shm"][5].startswith("(rw,nosuid,nodev,noexec")
    assert mounts["/sys"][5].startswith("(ro,nosuid,nodev,noexec")
    assert mounts["/"][5].startswith("(ro")
    assert "/sys/fs/cgroup" in mounts
    assert mounts["/proc/sys"][5].startswith("(ro")
    links = bundle.output("readlink /dev/ptmx")
    assert "pts/ptmx" in links
    devices = bundle.output("for d in null zero full random urandom tty; do stat -c '%n %a %t:%T' /dev/$d; done")
    assert "/dev/null 666 1:3" in devices
    assert "/dev/tty 666 5:0" in devices
    assert bundle.output("umask; ls /proc/acpi 2>/dev/null; cat /proc/timer_list | wc -c").split()[-1] == "0"


def test_read_only_root_and_masked_paths(bundle: Bundle) -> None:
    bundle.linux["maskedPaths"].append("/etc/passwd")
    bundle.linux["maskedPaths"].append("/home")
    bundle.linux["readonlyPaths"].append("/tmp")
    bundle.spec["root"]["readonly"] = False
    output = bundle.output(
        "wc -c < /etc/passwd; ls -A /home | wc -l; touch /tmp/x 2>/dev/null || echo no; touch /y && echo yes"
    )
    assert output.split() == ["0", "0", "no", "yes"]
    bundle.spec["root"]["readonly"] = True
    bundle.shell("touch /z")
    code, text = bundle.in_process()
    assert code != 0
    assert "Read-only" in text


def test_bind_mounts_make_their_mount_points(bundle: Bundle) -> None:
    source = bundle.directory / "volume"
    source.mkdir()
    (source / "file").write_text("content")
    bundle.spec["root"]["readonly"] = False
    bundle.spec["mounts"] += [
        {"destination": "/data/deep", "type": "bind", "source": str(source), "options": ["rbind", "rprivate"]},
        {"destination": "/conf/one", "type": "bind", "source": str(source / "file"), "options": ["bind", "ro"]},
    ]
    script = "cat /data/deep/file /conf/one; echo new > /data/deep/made; (echo x >> /conf/one) 2>/dev/null || echo ro"
    assert bundle.output(script).split() == ["contentcontentro"]
    assert (source / "made").read_text() == "new\n"
    assert (source / "file").read_text() == "content"


def test_tmpfs_copies_up_when_asked(bundle: Bundle) -> None:
    bundle.spec["mounts"].append(
        {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro", "size=1m"]}
    )
    output = bundle.output("head -c 4 /etc/passwd; touch /etc/x 2>/dev/null || echo :ro")
    assert output.strip() == "root:ro"


def test_overlay_rootfs_exists_in_the_container_only(bundle: Bundle, busybox_root: Path) -> None:
    for name in ("upper", "work", "empty"):
        (bundle.directory / name).mkdir()
    bundle.spec["root"] = {"path": "empty", "readonly": False}
    overlay = RootfsMount(
        "overlay",
        "overlay",
        (
            f"workdir={bundle.directory}/work",
            f"upperdir={bundle.directory}/upper",
            f"lowerdir={busybox_root}",
        ),
    )
    bundle.shell("echo made > /made; sleep 1000")
    with bundle.captured() as capture:
        launched = bundle.runtime.create(
            bundle.id, str(bundle.directory), stdio=capture.stdio, rootfs=[overlay], spec=bundle.copied()
        )
    bundle.runtime.start(bundle.id)
    deadline = time.monotonic() + 5
    while not (bundle.directory / "upper/made").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (bundle.directory / "upper/made").read_text() == "made\n"
    assert not list((bundle.directory / "empty").iterdir())
    bundle.runtime.kill(bundle.id, 9)
    assert wait(launched) == 137


def test_hostname_sysctl_cwd_env(bundle: Bundle) -> None:
    bundle.spec["hostname"] = "box"
    bundle.spec["domainname"] = "example.org"
    bundle.spec["root"]["readonly"] = False
    bundle.linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shmmax": "12345678", "kernel/msgmax": "9000"}
    bundle.process.update(cwd="/made/here", env=["PATH=/bin", "A=1", "A=2", "HOME=/x"])
    script = "hostname; cat /proc/sys/kernel/domainname; pwd; echo $A $HOME;"
    script += "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax /proc/sys/kernel/msgmax"
    assert bundle.output(script).split() == [
        *("box", "example.org", "/made/here", "2", "/x", "1", "12345678", "9000"),
    ]


def test_rlimits_and_oom_score(bundle: Bundle) -> None:
    bundle.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 200}]
    bundle.process["oomScoreAdj"] = 123
    assert bundle.output("ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj").split() == ["99", "200", "123"]


def test_a_limit_that_cannot_be_raised_is_named(bundle: Bundle) -> None:
    bundle.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 1 << 40, "hard": 1 << 40}]
    bundle.shell("true")
    with pytest.raises(RuntimeFailure, match="error setting rlimit RLIMIT_NOFILE"):
        bundle.in_process()


def test_resources_are_in_force(bundle: Bundle) -> None:
    bundle.linux["resources"].update({"pids": {"limit": 17}, "memory": {"limit": 64 << 20}, "cpu": {"shares": 512}})
    bundle.sleeping()
    stats = bundle.runtime.stats(bundle.id)
    assert stats["pids"]["limit"] == 17
    assert stats["memory"]["usage"]["limit"] == 64 << 20
    bundle.runtime.update(bundle.id, {"pids": {"limit": 23}})
    assert bundle.runtime.stats(bundle.id)["pids"]["limit"] == 23
    code, text = bundle.exec("sh", "-c", "cat /proc/self/cgroup")
    assert code == 0
    ours = [line for line in text.splitlines() if ":pids:" in line or line.startswith("0::")]
    assert ours, text


def test_devices_not_allowed_are_refused(bundle: Bundle) -> None:
    bundle.process["capabilities"]["bounding"].append("CAP_MKNOD")
    bundle.process["capabilities"]["effective"].append("CAP_MKNOD")
    bundle.process["capabilities"]["permitted"].append("CAP_MKNOD")
    bundle.spec["mounts"][1]["options"] = ["mode=755"]
    output = bundle.output("mknod /dev/disk b 254 0 && (head -c1 /dev/disk >/dev/null 2>&1 || echo refused)")
    assert output.split() == ["refused"]


def test_seccomp_filter(bundle: Bundle) -> None:
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
    }
    for no_new_privileges in (True, False):
        bundle.process["noNewPrivileges"] = no_new_privileges
        bundle.process["user"] = {"uid": 1000 if no_new_privileges else 0, "gid": 0}
        output = bundle.output("grep Seccomp: /proc/self/status; mkdir /tmp/x 2>&1; grep CapPrm /proc/self/status")
        assert "No space left" in output
        assert output.split()[1] == "2"
        assert output.split()[-1] == ("0" * 16 if no_new_privileges else "0000000020000420")
    bundle.sleeping()
    assert "No space left" in bundle.exec("mkdir", "/tmp/x")[1]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("foo", 'exec: "foo": executable file not found in $PATH'),
        ("/etc/passwd", 'exec: "/etc/passwd": permission denied'),
        ("/x/y", 'exec: "/x/y": stat /x/y: no such file or directory'),
        ("/etc", 'exec: "/etc": is a directory'),
    ],
)
def test_a_program_that_cannot_run_is_told_in_dockers_words(bundle: Bundle, program: str, message: str) -> None:
    bundle.process["args"] = [program]
    with pytest.raises(ProcessFailure) as caught:
        bundle.in_process()
    assert message in str(caught.value)
    assert bundle.runtime.list() == []
    bundle.sleeping()
    with pytest.raises(ProcessFailure) as caught:
        bundle.exec(program)
    assert message in str(caught.value)


def test_a_file_that_is_no_program_fails_at_start(bundle: Bundle) -> None:
    (bundle.rootfs / "bin/junk").write_text("junk")
    (bundle.rootfs / "bin/junk").chmod(0o755)
    bundle.process["args"] = ["junk"]
    with pytest.raises(ProcessFailure, match="exec /bin/junk: exec format error"):
        bundle.in_process()


def test_life_cycle_and_its_refusals(bundle: Bundle) -> None:
    runtime = bundle.runtime
    with pytest.raises(ContainerNotFound):
        runtime.state(bundle.id)
    bundle.process["args"] = ["sleep", "1000"]
    with bundle.captured() as capture:
        launched = runtime.create(bundle.id, str(bundle.directory), stdio=capture.stdio, spec=bundle.copied())
        with pytest.raises(ContainerExists):
            runtime.create(bundle.id, str(bundle.directory), stdio=capture.stdio, spec=bundle.copied())
    assert runtime.state(bundle.id)["status"] == "created"
    with pytest.raises(InvalidState):
        runtime.resume(bundle.id)
    runtime.start(bundle.id)
    assert runtime.state(bundle.id)["status"] == "running"
    with pytest.raises(InvalidState, match="cannot start"):
        runtime.start(bundle.id)
    with pytest.raises(InvalidState, match="that is not stopped: running"):
        runtime.delete(bundle.id)
    runtime.pause(bundle.id)
    assert runtime.state(bundle.id)["status"] == "paused"
    with pytest.raises(InvalidState, match="paused"):
        bundle.exec("true")
    runtime.resume(bundle.id)
    assert bundle.exec("true") == (0, "")
    assert list(runtime.pids(bundle.id)) == [launched.pid]
    runtime.kill(bundle.id, 15)
    runtime.kill(bundle.id, 9)
    assert wait(launched) == 137
    state = runtime.state(bundle.id)
    assert (state["status"], state["pid"]) == ("stopped", 0)
    with pytest.raises(InvalidState, match="container not running"):
        runtime.kill(bundle.id, 9)
    with pytest.raises(InvalidState):
        bundle.exec("true")
    runtime.delete(bundle.id)
    runtime.delete(bundle.id, force=True)
    with pytest.raises(ContainerNotFound):
        runtime.delete(bundle.id)


def test_exec_joins_everything(bundle: Bundle) -> None:
    launched = bundle.sleeping()
    kinds = ("pid", "net", "ipc", "uts", "mnt", "cgroup")
    code, text = bundle.exec("sh", "-c", f"for k in {' '.join(kinds)}; do readlink /proc/self/ns/$k; done; pwd; exit 3")
    assert code == 3
    assert text.split()[:-1] == [os.readlink(f"/proc/{launched.pid}/ns/{kind}") for kind in kinds]
    code, text = bundle.exec("sh", "-c", "id -u; echo $X", user={"uid": 1000, "gid": 1000}, env=["PATH=/bin", "X=y"])
    assert text.split() == ["1000", "y"]


def test_terminal(bundle: Bundle) -> None:
    bundle.process.update(terminal=True, consoleSize={"height": 33, "width": 99})
    bundle.shell("test -t 0 && tty && stty size && ls -l /dev/console | cut -c1 && sleep 1000")
    launched = bundle.runtime.create(bundle.id, str(bundle.directory), spec=bundle.copied())
    assert launched.console is not None
    bundle.runtime.start(bundle.id)
    assert _read_lines(launched.console, 3) == ["/dev/pts/0", "33 99", "c"]
    second = bundle.runtime.exec(
        bundle.id, {**bundle.process, "args": ["sh", "-c", "tty; stty size"]}, console_size=(10, 20)
    )
    assert second.console is not None
    assert _read_lines(second.console, 2) == ["/dev/pts/1", "10 20"]
    wait(second)
    os.close(second.console)
    os.close(launched.console)
    bundle.runtime.kill(bundle.id, 9)
    wait(launched)


def _read_lines(terminal: int, count: int) -> list[str]:
    text = b""
    while text.count(b"\n") < count:
        text += os.read(terminal, 1000)
    return text.decode().split("\r\n")[:count]


def test_hooks_run_in_order_with_the_state_on_stdin(bundle: Bundle) -> None:
    log = bundle.directory / "hooks.log"
    log.touch()
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    bundle.spec["hooks"] = {
        kind: [
            {
                "path": "/bin/sh",
                "args": ["sh", "-c", f'read -r state; echo "{kind} $state" >> {log}'],
                "env": ["PATH=/bin:/usr/bin"],
                "timeout": 10,
            }
        ]
        for kind in kinds
    }
    bundle.output("true")
    lines = log.read_text().splitlines()
    assert [line.split()[0] for line in lines] == list(kinds)
    assert all(f'"id": "{bundle.id}"' in line for line in lines)
    assert '"status": "stopped"' in lines[-1]


def test_a_hook_without_an_environment_has_ours_but_not_in_the_container(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_HOST", "1")
    log, inside = bundle.directory / "hooks.log", bundle.rootfs / "hook.log"
    script = 'echo "${OF_THE_HOST:-nothing}" >> '
    bundle.spec["root"]["readonly"] = False
    bundle.spec["hooks"] = {
        "createRuntime": [
            {"path": "/bin/sh", "args": ["sh", "-c", f"{script}{log}"]},
            {"path": "/bin/sh", "args": ["sh", "-c", f"{script}{log}"], "env": []},
        ],
        "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", f"{script}/hook.log"]}],
    }
    bundle.output("true")
    assert log.read_text().split() == ["1", "nothing"]
    assert inside.read_text() == "nothing\n"


def test_a_failing_hook_undoes_the_creation(bundle: Bundle) -> None:
    bundle.spec["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo broken; exit 3"]}]}
    bundle.shell("true")
    with pytest.raises(RuntimeFailure, match=r"createRuntime hook #0: /bin/sh: exit status 3, output: broken"):
        bundle.in_process()
    assert bundle.runtime.list() == []


def test_delete_force_cleans_up_after_a_killed_creator(bundle: Bundle) -> None:
    bundle.shell("sleep 1000")
    creator = os.fork()
    if creator == 0:
        null = os.open(os.devnull, os.O_RDWR)
        bundle.runtime.create(bundle.id, str(bundle.directory), stdio=Stdio(null, null, null), spec=bundle.copied())
        os.kill(os.getpid(), 9)
    os.waitpid(creator, 0)
    assert bundle.runtime.state(bundle.id)["status"] == "created"
    bundle.runtime.delete(bundle.id, force=True)
    assert bundle.runtime.list() == []


@pytest.mark.parametrize("name", ["..", "a/b", "", ".", "x" * 2000, "ü"])
def test_ids_that_are_no_names_are_refused(bundle: Bundle, name: str) -> None:
    with pytest.raises(InvalidSpec, match="invalid container ID"):
        bundle.runtime.create(name, str(bundle.directory), spec=bundle.copied())


def test_new_user_namespace_with_a_network_namespace_of_the_host(bundle: Bundle) -> None:
    bundle.linux["namespaces"] = [
        entry for entry in bundle.linux["namespaces"] if entry["type"] not in ("network", "ipc")
    ]
    bundle.linux["namespaces"] += [
        {"type": "network", "path": "/proc/self/ns/net"},
        {"type": "ipc", "path": "/proc/self/ns/ipc"},
        {"type": "user"},
    ]
    mapping = [{"containerID": 0, "hostID": 0, "size": 65536}]
    bundle.linux.update(uidMappings=mapping, gidMappings=mapping)
    bundle.spec["mounts"] = [
        entry for entry in bundle.spec["mounts"] if entry["type"] not in ("sysfs", "cgroup", "mqueue")
    ]
    output = bundle.output("readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; id -u").split()
    assert output == [os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/ipc"), "0"]


def test_a_failing_poststart_hook_ends_the_container(bundle: Bundle) -> None:
    bundle.spec["hooks"] = {"poststart": [{"path": "/bin/false"}]}
    bundle.process["args"] = ["sleep", "1000"]
    with bundle.captured() as capture:
        launched = bundle.runtime.create(bundle.id, str(bundle.directory), stdio=capture.stdio, spec=bundle.copied())
    with pytest.raises(RuntimeFailure, match="poststart hook #0"):
        bundle.runtime.start(bundle.id)
    assert wait(launched) == 137


def test_overlay_of_more_layers_than_fit_in_a_page(bundle: Bundle, busybox_root: Path) -> None:
    layers = [bundle.directory / f"layer-{'x' * 40}-{number}" for number in range(60)]
    for number, layer in enumerate(layers):
        layer.mkdir()
        (layer / f"file{number}").touch()
    for name in ("upper", "work"):
        (bundle.directory / name).mkdir()
    lower = ":".join(str(layer) for layer in [*layers, busybox_root])
    assert len(lower) > 4096
    options = (f"workdir={bundle.directory}/work", f"upperdir={bundle.directory}/upper", f"lowerdir={lower}")
    bundle.shell("ls / | grep -c ^file")
    with bundle.captured() as capture:
        launched = bundle.runtime.create(
            bundle.id,
            str(bundle.directory),
            stdio=capture.stdio,
            rootfs=[RootfsMount("overlay", "overlay", options)],
            spec=bundle.copied(),
        )
        bundle.runtime.start(bundle.id)
        assert wait(launched) == 0
        assert capture.text() == "60\n"
