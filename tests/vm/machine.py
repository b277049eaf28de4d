"""A small virtual machine with cgroup v2, systemd and full capabilities: what the development machine lacks.

    python -m tests.vm.machine build     make the base (kernel and root directory) in the cache, a few minutes
    python -m tests.vm.machine [NAME]    boot it with the present code and print the results of the guest's tests
    python -m tests.vm.machine --network [NAME]    the same for the suite of network drivers

Rule: the guest is Debian's own kernel and packages, run by QEMU's software emulation, so it needs no /dev/kvm and no
rights on the host but root to unpack. The cache is ``$GANTRY_VM_CACHE``, else ``~/.cache/gantry-vm``.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = "python3,libseccomp2,busybox-static,kmod,procps,systemd-sysv,dbus,criu"
PYTHON = (3, 11)
"""The guest's."""
GUESTS = {
    "guest": ("oci", "protos", "runc_py", "shim", "tests/vm/cgroup_suite.py", "tests/vm/shim_at_rest.py"),
    "network_guest": ("engine", "oci", "protos", "tests/integration/network", "tests/support", "tests/conftest.py"),
}
"""What is copied into the guest for each module that runs there."""
PYTHON_PACKAGES = (
    *("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments"),
    *("msgspec", "structlog", "dnslib"),
)
MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk")
"""Drivers of the disk, in the order in which they need each other."""

_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod /$module.ko; done
n=0
while [ ! -e /dev/vda ] && [ $n -lt 100 ]; do /bin/busybox sleep 0.1; n=$((n+1)); done
/bin/busybox mount -t ext4 /dev/vda /root
exec /bin/busybox switch_root /root /sbin/init
"""
_SERVICE = """[Unit]
Description=tests of the runtime
After=dbus.service
[Service]
Type=oneshot
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStart=/usr/bin/python3 /gantry/tests/vm/guest.py
ExecStopPost=/bin/systemctl poweroff --force --force
[Install]
WantedBy=multi-user.target
"""
_SLOW_UNITS = (
    *("getty@tty1.service", "serial-getty@ttyS0.service", "systemd-timesyncd.service", "apt-daily.timer"),
    *(
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_reap.service",
        "fstrim.timer",
        "systemd-udevd.service",
    ),
    *("systemd-udev-trigger.service", "systemd-logind.service", "systemd-update-utmp.service", "logrotate.timer"),
)


def cache() -> Path:
    """Where the base is kept."""
    return Path(os.environ.get("GANTRY_VM_CACHE") or Path.home() / ".cache/gantry-vm")


def is_built() -> bool:
    """Whether ``build`` has been done."""
    return (cache() / "root/sbin/init").is_symlink() and (cache() / "initramfs").exists()


def build() -> None:
    """Download kernel and packages with apt's tools and unpack them into the cache."""
    base = cache()
    base.mkdir(parents=True, exist_ok=True)
    _download_kernel(base)
    _make_initramfs(base)
    archive = base / "root.tar"
    if not archive.exists():
        command = ["unshare", "--mount", "--propagation", "private", "mmdebstrap", "--variant=minbase"]
        _run(*command, f"--include={PACKAGES}", "bookworm", str(archive))
    root = base / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    _run("tar", "--extract", "--file", str(archive), "--directory", str(root), "--numeric-owner", "--exclude=./dev/*")
    _configure(root)
    shutil.copytree(base / "kernel/lib/modules", root / "usr/lib/modules")
    (version,) = (path.name for path in (root / "usr/lib/modules").iterdir())
    _run("chroot", str(root), "depmod", version)


def _configure(root: Path) -> None:
    units = root / "etc/systemd/system"
    (units / "gantry-test.service").write_text(_SERVICE)
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "gantry-test.service").symlink_to("../gantry-test.service")
    for unit in _SLOW_UNITS:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    (root / "etc/fstab").write_text("")
    for directory in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / directory, ignore_errors=True)


def _download_kernel(base: Path) -> None:
    if (base / "vmlinuz").exists():
        return
    with tempfile.TemporaryDirectory() as directory:
        depends = subprocess.run(
            ["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True, check=True
        ).stdout
        (package,) = [line.split()[-1] for line in depends.splitlines() if "Depends:" in line]
        _run("apt-get", "download", package, cwd=directory)
        (archive,) = Path(directory).glob("*.deb")
        shutil.rmtree(base / "kernel", ignore_errors=True)
        _run("dpkg", "--extract", str(archive), str(base / "kernel"))
    (image,) = (base / "kernel/boot").glob("vmlinuz-*")
    shutil.copy(image, base / "vmlinuz")


def _make_initramfs(base: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        for name in ("bin", "dev", "root"):
            (tree / name).mkdir()
        busybox = shutil.which("busybox")
        assert busybox, "busybox is missing: apt-get install busybox-static"
        shutil.copy(busybox, tree / "bin/busybox")
        for module in MODULES:
            (found,) = (base / "kernel/lib/modules").rglob(f"{module}.ko")
            shutil.copy(found, tree)
        (tree / "init").write_text(_INIT.format(modules=" ".join(MODULES)))
        (tree / "init").chmod(0o755)
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*"))).encode()
        with (base / "initramfs").open("wb") as target:
            command = [busybox, "cpio", "--create", "--format=newc"]
            subprocess.run(command, input=names, stdout=target, cwd=tree, check=True)


def boot(seconds: float = 600, only: str = "", guest: str = "guest") -> list[str]:
    """Boot with the repository's present code; the lines that the guest printed between its two marks.

    ``only`` is a part of the names of the tests to run, ``guest`` the module here that runs there.
    """
    with tempfile.TemporaryDirectory(prefix="gantry-vm-") as directory, _alone():
        disk = Path(directory) / "disk"
        _make_disk(disk, guest)
        log = Path(directory) / "console"
        command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-smp", "2", "-m", "1024", "-nographic"]
        command += ["-no-reboot", "-nic", "none", "-kernel", str(cache() / "vmlinuz")]
        command += ["-initrd", str(cache() / "initramfs"), "-serial", f"file:{log}", "-monitor", "none"]
        command += ["-drive", f"file={disk},if=virtio,format=raw"]
        command += ["-append", "console=ttyS0 quiet panic=-1 systemd.show_status=0 mitigations=off gantry.only=" + only]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as machine:
            try:
                machine.wait(seconds)
            except subprocess.TimeoutExpired:
                machine.kill()
        text = log.read_text(errors="replace").replace("\r", "")
    _, begun, results = text.partition("== begin\n")
    assert begun, f"the guest did not start its tests:\n{text[-4000:]}"
    return results.partition("== end")[0].splitlines()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One machine at a time: its code is put together in the cache, and it takes two processors."""
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_disk(disk: Path, guest: str) -> None:
    """An ext4 image of the base with the code in /gantry."""
    code = cache() / "root/gantry"
    shutil.rmtree(code, ignore_errors=True)
    (code / "tests/vm").mkdir(parents=True)
    for name in GUESTS[guest]:
        _copy(REPOSITORY / name, code / name)
    shutil.copy(REPOSITORY / f"tests/vm/{guest}.py", code / "tests/vm/guest.py")
    if guest == "network_guest":
        for name in PYTHON_PACKAGES:
            found = importlib.util.find_spec(name)
            assert found is not None and found.origin is not None, f"python package {name} is missing"
            place = Path(found.origin)
            place = place.parent if found.submodule_search_locations else place
            _copy(place, code / "site-packages" / place.name)
    _run("mkfs.ext4", "-q", "-d", str(cache() / "root"), str(disk), "1200M")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _run(*command: str, cwd: str | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} gave {done.returncode}: {done.stderr[-2000:]}")


def main(arguments: Sequence[str]) -> int:
    """The command; 0 when every test of the guest passed."""
    if arguments[:1] == ["build"] or not is_built():
        build()
        if arguments[:1] == ["build"]:
            return 0
    guest = "network_guest" if arguments[:1] == ["--network"] else "guest"
    only = [name for name in arguments if name != "--network"]
    lines = boot(only=only[0] if only else "", guest=guest)
    sys.stdout.write("\n".join(lines) + "\n")
    return int(not lines or any(line.startswith("not ok") for line in lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
