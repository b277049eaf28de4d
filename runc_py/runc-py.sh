#!/bin/sh
# The command runc-py: the interpreter it was installed for, without site-packages and without anything that the
# caller's environment could make it import (-I -S). A console script made by pip cannot ask for that.
self=$0
case $self in */*) ;; *) self=$(command -v -- "$self" || echo "./$self") ;; esac
[ -h "$self" ] && self=$(readlink -f -- "$self")
bin=${self%/*}
# pip has written the interpreter's path into the first line of the console script beside this one.
IFS= read -r python <"$bin/gantry" && python=${python#"#!"}
[ -x "$python" ] && [ "$python" != /bin/sh ] || python=$bin/python3
exec "$python" -I -S -c '
import sys
prefix, *sys.argv = sys.argv[1:]
packages = f"{prefix}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"

def quicken(root):
    # The modules from one file (runc_py/onefile.py), where there is one for this interpreter.
    import marshal, posix
    from _frozen_importlib_external import MAGIC_NUMBER
    place = f"{root}/runc_py/__pycache__/onefile.{sys.implementation.cache_tag}"
    try:
        fd = posix.open(place, posix.O_RDONLY | posix.O_CLOEXEC)
        head = posix.read(fd, 8)
        size = int.from_bytes(head[4:], "little")
        data = posix.read(fd, size) if head[:4] == MAGIC_NUMBER else b""
        posix.close(fd)
        finder, index = marshal.loads(data)
    except (OSError, ValueError, EOFError, TypeError):
        return
    exec(finder, {"sys": sys, "marshal": marshal, "place": place, "start": size + 8, "index": index})

root = packages
try:
    import posix
    posix.stat(f"{root}/runc_py")
except OSError:
    try:  # an editable installation
        with open(f"{packages}/_editable_impl_gantry_engine.pth") as paths:
            root = paths.readline().rstrip()
    except OSError:
        pass
quicken(root)
sys.path.append(root)
try:
    from runc_py.main import main
except ModuleNotFoundError:
    import site

    site.main()
    from runc_py.main import main
main()
' "${bin%/*}" "$0" "$@"
