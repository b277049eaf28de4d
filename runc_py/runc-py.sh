#!/bin/sh
# The command runc-py: the interpreter it was installed for, without site-packages and without anything that the
# caller's environment could make it import (-I -S), its text UTF-8 whatever the locale (-X utf8). A console script made
# by pip cannot ask for that.
self=$0
case $self in */*) ;; *) self=$(command -v -- "$self" || echo "./$self") ;; esac
[ -h "$self" ] && self=$(readlink -f -- "$self")
bin=${self%/*}
# pip has written the interpreter's path into the first line of the console script beside this one.
IFS= read -r python <"$bin/gantry" && python=${python#"#!"}
[ -x "$python" ] && [ "$python" != /bin/sh ] || python=$bin/python3
# This program is compiled at each start, so it is short: what it leaves out is in the one file with the modules' code
# (runc_py/onefile.py), or in a text that is compiled where there is no such file for this interpreter.
exec "$python" -X utf8 -I -S -c '
import sys, posix, marshal
prefix, *sys.argv = sys.argv[1:]
root = "%s/lib/python%d.%d/site-packages" % (prefix, *sys.version_info[:2])
begin = main = None
try:
    try:
        posix.stat(root + "/runc_py")
    except OSError:
        with open(root + "/_editable_impl_gantry_engine.pth") as paths:
            root = paths.readline().rstrip()
    place = root + "/runc_py/__pycache__/onefile." + sys.implementation.cache_tag
    fd = posix.open(place, posix.O_CLOEXEC)
    data = posix.read(fd, 32768)
    posix.close(fd)
    begin, index = marshal.loads(data[8:] if data[:4] == sys.hexversion.to_bytes(4, "little") else b"")
except (OSError, ValueError, EOFError, TypeError):
    pass
sys.path.append(root)
exec(begin or """
try:
    from runc_py.main import main
except ModuleNotFoundError:
    import site
    site.main()
    from runc_py.main import main
""")
main()
' "${bin%/*}" "$0" "$@"
