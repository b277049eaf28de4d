"""images, pull, push, load, save, import, tag, rmi, history, image (bootstrap, inspect, prune).

Rule: data goes to stdout, progress and errors to stderr, so that a command's output can be an argument of the next.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from cli import progress
from cli.engine import Parser, client
from cli.errors import CommandFailed
from cli.http import CHUNK, Client
from cli.tables import age, size, table

HUB_KEY = "https://index.docker.io/v1/"
"""Where ``docker login`` keeps the credentials of the default registry."""


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command of this module."""
    out = Parser(f"gantry {name}")
    _OPTIONS[name](out)
    return out


def execute(name: str, arguments: argparse.Namespace) -> int:
    """Run one command of this module."""
    return _COMMANDS[name](arguments)


def _images_options(out: argparse.ArgumentParser) -> None:
    out.add_argument("-a", "--all", action="store_true", help="untagged parents of other images too")
    out.add_argument("-q", "--quiet", action="store_true", help="only ids")
    out.add_argument("--no-trunc", action="store_true")
    out.add_argument("--digests", action="store_true")
    out.add_argument("-f", "--filter", action="append", default=[], metavar="KEY=VALUE", help="dangling, label, …")
    out.add_argument("name", nargs="?", help="only images called so (wildcards allowed)")


def _pull_options(out: argparse.ArgumentParser) -> None:
    out.add_argument("-q", "--quiet", action="store_true")
    out.add_argument("-a", "--all-tags", action="store_true")
    out.add_argument("--platform", metavar="OS/ARCH")
    out.add_argument("image")


def _push_options(out: argparse.ArgumentParser) -> None:
    out.add_argument("-q", "--quiet", action="store_true")
    out.add_argument("-a", "--all-tags", action="store_true")
    out.add_argument("image")


def _load_options(out: argparse.ArgumentParser) -> None:
    out.add_argument("-q", "--quiet", action="store_true")
    out.add_argument("-i", "--input", metavar="FILE", help="default: standard input")


def _save_options(out: argparse.ArgumentParser) -> None:
    out.add_argument("-o", "--output", metavar="FILE", help="default: standard output")
    out.add_argument("image", nargs="+")


def _import_options(out: argparse.ArgumentParser) -> None:
    out.add_argument("-c", "--change", action="append", default=[], metavar="INSTRUCTION", help='e.g. CMD ["sh"]')
    out.add_argument("-m", "--message")
    out.add_argument("file", help="archive of a root file system, an http(s) URL, or - for standard input")
    out.add_argument("image", nargs="?")


def _tag_options(out: argparse.ArgumentParser) -> None:
    out.add_argument("source")
    out.add_argument("target")


def _rmi_options(out: argparse.ArgumentParser) -> None:
    out.add_argument("-f", "--force", action="store_true")
    out.add_argument("--no-prune", action="store_true", help="keep untagged parents")
    out.add_argument("image", nargs="+")


def _history_options(out: argparse.ArgumentParser) -> None:
    out.add_argument("--no-trunc", action="store_true")
    out.add_argument("-q", "--quiet", action="store_true", help="only ids")
    out.add_argument("image")


def _image_options(out: argparse.ArgumentParser) -> None:
    commands = out.add_subparsers(dest="action", required=True, metavar="bootstrap|inspect|prune")
    bootstrap = commands.add_parser("bootstrap", help="make a base image from the distribution's own packages")
    bootstrap.add_argument("image", metavar="busybox|debian[:SUITE]|ubuntu[:SUITE]")
    bootstrap.add_argument("-t", "--tag", metavar="NAME", help="name of the result (default: as asked for)")
    bootstrap.add_argument("-q", "--quiet", action="store_true")
    inspect = commands.add_parser("inspect", help="show everything about images, as JSON")
    inspect.add_argument("image", nargs="+")
    prune = commands.add_parser("prune", help="remove images without a name")
    prune.add_argument("-a", "--all", action="store_true", help="all images that no container uses")
    prune.add_argument("-f", "--force", action="store_true", help="do not ask")
    prune.add_argument("--filter", action="append", default=[], metavar="KEY=VALUE", help="until, label, label!")


def filters_json(pairs: list[str]) -> str | None:
    """``KEY=VALUE`` options as the API's ``filters``; None without any."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise CommandFailed(f"invalid filter {pair!r}: KEY=VALUE is expected", 125)
        if key == "label!" or key.endswith("!"):
            key = key.rstrip("!") + "!"
        found.setdefault(key, []).append(value)
    return json.dumps(found) if found else None


def images(arguments: argparse.Namespace) -> int:
    """One line per name of each image."""
    pairs = [*arguments.filter, *([f"reference={arguments.name}"] if arguments.name else [])]
    query: dict[str, str | int | bool | None] = {"all": arguments.all, "filters": filters_json(pairs)}
    rows = []
    for image in client(arguments).call("GET", "/images/json", query):
        shown = image["Id"] if arguments.no_trunc else image["Id"].removeprefix("sha256:")[:12]
        by_repository = dict(digest.partition("@")[::2] for digest in image["RepoDigests"] or [])
        for name in image["RepoTags"] or _untagged(image):
            repository, _, tag = name.rpartition(":")
            digest = [by_repository.get(repository, "<none>")] if arguments.digests else []
            rows.append((repository, tag, *digest, shown, f"{age(image['Created'])} ago", size(image["Size"])))
    if arguments.quiet:
        for image_id in dict.fromkeys(row[-3] for row in rows):
            print(image_id)
    else:
        digest_column = ["DIGEST"] if arguments.digests else []
        print(table(("REPOSITORY", "TAG", *digest_column, "IMAGE ID", "CREATED", "SIZE"), rows))
    return 0


def _untagged(image: dict[str, Any]) -> list[str]:
    """``repository:<none>`` for an image that only digests name, else ``<none>:<none>``."""
    return [f"{digest.partition('@')[0]}:<none>" for digest in image["RepoDigests"] or []] or ["<none>:<none>"]


def credentials(image: str) -> dict[str, str]:
    """The ``X-Registry-Auth`` header for ``image``, from what ``docker login`` stored; none when there is nothing."""
    host = image.partition("/")[0]
    key = host if "/" in image and (set(host) & set(".:") or host == "localhost") else HUB_KEY
    directory = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    try:
        with open(f"{directory}/config.json") as file:
            known: dict[str, Any] = json.load(file)
    except (OSError, ValueError):
        return {}
    entry = dict((known.get("auths") or {}).get(key) or {})
    helper = (known.get("credHelpers") or {}).get(key) or known.get("credsStore")
    if helper:
        entry = _from_helper(helper, key) or entry
    if not entry:
        return {}
    raw = json.dumps(entry | {"serveraddress": key}).encode()
    return {"X-Registry-Auth": base64.urlsafe_b64encode(raw).decode()}


def _from_helper(helper: str, key: str) -> dict[str, str]:
    """Credentials from ``docker-credential-HELPER``; none when it has none or is not installed."""
    import subprocess

    try:
        command = [f"docker-credential-{helper}", "get"]
        done = subprocess.run(command, input=key, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return {}
    if found.get("Username") == "<token>":
        return {"identitytoken": found.get("Secret", "")}
    return {"username": found.get("Username", ""), "password": found.get("Secret", "")}


def pull(
    engine: Client, image: str, *, platform: str | None = None, quiet: bool = False, all_tags: bool = False
) -> None:
    """Pull ``image`` with progress on stderr."""
    repository, tag = split_tag(image)
    query = {"fromImage": repository, "tag": None if all_tags else tag, "platform": platform}
    with engine.send("POST", "/images/create", dict(query), headers=credentials(image)) as reply:
        progress.show(reply.messages(), quiet=quiet)


def split_tag(image: str) -> tuple[str, str | None]:
    """Name and tag of a reference; the tag is ``latest`` unless named, and None beside a digest."""
    if "@" in image:
        return image, None
    head, slash, last = image.rpartition("/")
    name, colon, tag = last.partition(":")
    return head + slash + name, tag if colon else "latest"


def pull_command(arguments: argparse.Namespace) -> int:
    """``gantry pull``."""
    pull(
        client(arguments, start=True),
        arguments.image,
        platform=arguments.platform,
        quiet=arguments.quiet,
        all_tags=arguments.all_tags,
    )
    print(arguments.image)
    return 0


def push(arguments: argparse.Namespace) -> int:
    """``gantry push``."""
    name, tag = split_tag(arguments.image)
    query = {"tag": None if arguments.all_tags else tag}
    headers = credentials(arguments.image) or {"X-Registry-Auth": "e30="}
    with client(arguments).send("POST", f"/images/{name}/push", dict(query), headers=headers) as reply:
        progress.show(reply.messages(), quiet=arguments.quiet)
    print(arguments.image)
    return 0


def _file_chunks(path: str | None) -> Iterator[bytes]:
    try:
        with sys.stdin.buffer if path is None else open(path, "rb") as file:
            while data := file.read(CHUNK):
                yield data
    except OSError as error:
        raise CommandFailed(f"cannot read {path or 'standard input'}: {error.strerror}") from None


def load(arguments: argparse.Namespace) -> int:
    """``gantry load``."""
    if arguments.input is None and sys.stdin.isatty():
        raise CommandFailed("no archive: give -i FILE or pipe one in")
    engine = client(arguments, start=True)
    headers = {"Content-Type": "application/x-tar"}
    query = {"quiet": arguments.quiet}
    with engine.send(
        "POST", "/images/load", dict(query), stream=_file_chunks(arguments.input), headers=headers
    ) as reply:
        progress.show(reply.messages())
    return 0


def save(arguments: argparse.Namespace) -> int:
    """``gantry save``: the file appears only when it is whole."""
    if arguments.output is None and sys.stdout.isatty():
        raise CommandFailed("refusing to write an archive to a terminal: give -o FILE or redirect")
    from urllib.parse import quote

    names = "&".join(f"names={quote(name, safe='')}" for name in arguments.image)
    with client(arguments).send("GET", f"/images/get?{names}") as reply:
        if arguments.output is None:
            for piece in reply.chunks():
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return 0
        part = f"{arguments.output}.part"
        try:
            with open(part, "wb") as file:
                for piece in reply.chunks():
                    file.write(piece)
            os.replace(part, arguments.output)
        except OSError as error:
            raise CommandFailed(f"cannot write {arguments.output}: {error.strerror}") from None
        finally:
            if os.path.exists(part):
                os.unlink(part)
    return 0


def import_command(arguments: argparse.Namespace) -> int:
    """``gantry import``: prints the new image's id."""
    from urllib.parse import quote

    remote = arguments.file.startswith(("http://", "https://"))
    repository, tag = split_tag(arguments.image) if arguments.image else (None, None)
    pairs = [("fromSrc", arguments.file if remote else "-"), ("repo", repository), ("tag", tag)]
    pairs += [("message", arguments.message), *(("changes", change) for change in arguments.change)]
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs if value)
    stream = None if remote else _file_chunks(None if arguments.file == "-" else arguments.file)
    with client(arguments, start=True).send("POST", f"/images/create?{query}", stream=stream) as reply:
        for message in reply.messages():
            if "errorDetail" in message:
                raise CommandFailed(str(message["errorDetail"]["message"]))
            print(message.get("status", ""))
    return 0


def tag(arguments: argparse.Namespace) -> int:
    """``gantry tag``."""
    repository, name = split_tag(arguments.target)
    client(arguments).call("POST", f"/images/{arguments.source}/tag", {"repo": repository, "tag": name})
    return 0


def rmi(arguments: argparse.Namespace) -> int:
    """``gantry rmi``: every image is tried, the first error decides the status."""
    engine, status = client(arguments), 0
    query = {"force": arguments.force, "noprune": arguments.no_prune}
    for image in arguments.image:
        try:
            answer: list[dict[str, Any]] = engine.call("DELETE", f"/images/{image}", dict(query))
        except CommandFailed as error:
            print(f"gantry: {error.message}", file=sys.stderr)
            status = status or error.status
            continue
        for entry in answer:
            for action, what in entry.items():
                print(f"{action}: {what}")
    return status


def history(arguments: argparse.Namespace) -> int:
    """``gantry history``: the steps an image was made by, newest first."""
    entries = client(arguments).call("GET", f"/images/{arguments.image}/history")
    rows = []
    for entry in entries:
        image_id, command = entry["Id"], entry["CreatedBy"].replace("\t", " ")
        if not arguments.no_trunc:
            image_id = image_id.removeprefix("sha256:")[:12] if image_id != "<missing>" else image_id
            command = command if len(command) <= 45 else command[:44] + "…"
        rows.append((image_id, f"{age(entry['Created'])} ago", command, size(entry["Size"]), entry["Comment"]))
    if arguments.quiet:
        print("\n".join(row[0] for row in rows))
    else:
        print(table(("IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"), rows))
    return 0


def image(arguments: argparse.Namespace) -> int:
    """``gantry image …``."""
    return {"bootstrap": bootstrap, "inspect": inspect, "prune": prune}[arguments.action](arguments)


def bootstrap(arguments: argparse.Namespace) -> int:
    """``gantry image bootstrap``."""
    engine = client(arguments, start=True)
    query = {"image": arguments.image, "tag": arguments.tag}
    with engine.send("POST", "/gantry/images/bootstrap", dict(query)) as reply:
        progress.show(reply.messages(), quiet=arguments.quiet)
    print(arguments.tag or arguments.image)
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    """``gantry image inspect``: found images as a JSON list; the first error decides the status."""
    engine, status, found = client(arguments), 0, []
    for name in arguments.image:
        try:
            found.append(engine.call("GET", f"/images/{name}/json"))
        except CommandFailed as error:
            print(f"gantry: {error.message}", file=sys.stderr)
            status = status or error.status
    print(json.dumps(found, indent=4))
    return status


def prune(arguments: argparse.Namespace) -> int:
    """``gantry image prune``."""
    what = "all images that no container uses" if arguments.all else "all images without a name"
    if not arguments.force:
        if not sys.stdin.isatty():
            raise CommandFailed(f"this removes {what}: say --force to do it without being asked")
        if input(f"This removes {what}. Continue? [y/N] ").strip().lower() not in ("y", "yes"):
            return 1
    pairs = [*arguments.filter, *(["dangling=false"] if arguments.all else [])]
    answer = client(arguments).call("POST", "/images/prune", {"filters": filters_json(pairs)})
    for entry in answer["ImagesDeleted"] or []:
        for action, name in entry.items():
            print(f"{action}: {name}")
    print(f"Reclaimed {size(answer['SpaceReclaimed'])}", file=sys.stderr)
    return 0


_OPTIONS = {
    "images": _images_options, "pull": _pull_options, "push": _push_options, "load": _load_options,
    "save": _save_options, "import": _import_options, "tag": _tag_options, "rmi": _rmi_options,
    "history": _history_options, "image": _image_options,
}  # fmt: skip
_COMMANDS = {
    "images": images, "pull": pull_command, "push": push, "load": load, "save": save, "import": import_command,
    "tag": tag, "rmi": rmi, "history": history, "image": image,
}  # fmt: skip
