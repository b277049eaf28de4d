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
sys.path.append(packages)
try:
    from runc_py.main import main
except ModuleNotFoundError:
    try:  # an editable installation
        with open(f"{packages}/_editable_impl_gantry_engine.pth") as paths:
            sys.path.append(paths.readline().rstrip())
        from runc_py.main import main
    except (OSError, ModuleNotFoundError):
        import site

        site.main()
        from runc_py.main import main
main()
' "${bin%/*}" "$0" "$@"
