"""The BuildKit front: ``docker buildx``, ``docker build`` and Compose speak gRPC to it; ``engine.build`` builds.

Rule: only ``front`` is imported when the daemon starts; everything else comes with the first client.
"""
