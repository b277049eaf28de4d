"""Builds: the Dockerfile language, the graph of steps, their cache, and the endpoints in front of them."""
