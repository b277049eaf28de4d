"""The tables of ``meta.db``.

Rule: everything is namespaced, and every table that garbage collection looks at has the columns ``namespace``, a key
and ``labels`` (a JSON object of strings; "{}" when empty). Times are nanoseconds since the epoch. A new version of the
schema is a new entry at the end of ``MIGRATIONS``: entries that were released never change.

``snapshots``: a row is a snapshot, whatever lies on disk. ``id`` names its directory and is never used twice, so a
directory without a row is rubbish that may be removed. ``parent`` is the ``id`` of a committed row of the same
snapshotter and namespace (NULL at the base). ``key`` is what clients call it: the active key, then the committed name.
``kind`` is a number of ``snapshots_pb2.Kind``; ``size`` and ``inodes`` are those of committed ones. Garbage collection
follows ``parent`` and the labels, and removes rows; then it calls ``Snapshotter.cleanup``.

``snapshots_unsynced``: committed rows whose bytes may not be on disk yet, with the boot they were written in; after
another boot they are worth nothing.

``content``: one row for each namespace that has the blob; the file goes with the last row. ``ingests``: ``expires`` is
0 for never. ``containers``: ``data`` is the whole ``containers_pb2.Container``; the columns beside it are what garbage
collection and filters need. ``sandboxes``: ``data`` is the whole ``types_pb2.Sandbox``. ``mounts``: ``id`` names the
directory of its mount points and is never used twice, ``state`` is one of ``mounts.manager``'s, ``data`` is the whole
``types_pb2.ActivationInfo`` once there is one. ``lease_resources``: ``type`` is ``content``, ``ingests``, ``images``,
``mounts`` or ``snapshots/<snapshotter>``, ``id`` is digest, ref, name or key.
"""

from __future__ import annotations

MIGRATIONS = (
    """
    CREATE TABLE namespaces (
        name TEXT PRIMARY KEY,
        labels TEXT NOT NULL DEFAULT '{}'
    ) WITHOUT ROWID;

    CREATE TABLE content (
        namespace TEXT NOT NULL,
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        labels TEXT NOT NULL DEFAULT '{}',
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, digest)
    ) WITHOUT ROWID;
    CREATE INDEX content_digest ON content (digest);

    CREATE TABLE ingests (
        namespace TEXT NOT NULL,
        ref TEXT NOT NULL,
        expected TEXT NOT NULL DEFAULT '',
        total INTEGER NOT NULL DEFAULT 0,
        labels TEXT NOT NULL DEFAULT '{}',
        started_at INTEGER NOT NULL,
        expires INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (namespace, ref)
    ) WITHOUT ROWID;

    CREATE TABLE images (
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        digest TEXT NOT NULL,
        target TEXT NOT NULL,
        labels TEXT NOT NULL DEFAULT '{}',
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, name)
    ) WITHOUT ROWID;

    CREATE TABLE containers (
        namespace TEXT NOT NULL,
        id TEXT NOT NULL,
        image TEXT NOT NULL DEFAULT '',
        snapshotter TEXT NOT NULL DEFAULT '',
        snapshot_key TEXT NOT NULL DEFAULT '',
        labels TEXT NOT NULL DEFAULT '{}',
        data BLOB NOT NULL,
        PRIMARY KEY (namespace, id)
    );

    CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        snapshotter TEXT NOT NULL,
        namespace TEXT NOT NULL,
        key TEXT NOT NULL,
        parent INTEGER REFERENCES snapshots (id),
        kind INTEGER NOT NULL,
        labels TEXT NOT NULL DEFAULT '{}',
        size INTEGER NOT NULL DEFAULT 0,
        inodes INTEGER NOT NULL DEFAULT 0,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        UNIQUE (snapshotter, namespace, key)
    );
    CREATE INDEX snapshots_parent ON snapshots (parent) WHERE parent IS NOT NULL;

    CREATE TABLE leases (
        namespace TEXT NOT NULL,
        id TEXT NOT NULL,
        labels TEXT NOT NULL DEFAULT '{}',
        created_at INTEGER NOT NULL,
        PRIMARY KEY (namespace, id)
    ) WITHOUT ROWID;

    CREATE TABLE lease_resources (
        namespace TEXT NOT NULL,
        lease TEXT NOT NULL,
        type TEXT NOT NULL,
        id TEXT NOT NULL,
        PRIMARY KEY (namespace, lease, type, id),
        FOREIGN KEY (namespace, lease) REFERENCES leases (namespace, id) ON DELETE CASCADE
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE snapshots_unsynced (
        id INTEGER PRIMARY KEY,
        boot TEXT NOT NULL
    );
    """,
    """
    CREATE TABLE sandboxes (
        namespace TEXT NOT NULL,
        id TEXT NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (namespace, id)
    );
    """,
    """
    CREATE TABLE mounts (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        labels TEXT NOT NULL DEFAULT '{}',
        state INTEGER NOT NULL,
        data BLOB NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        UNIQUE (namespace, name)
    );
    """,
)
