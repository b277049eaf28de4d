"""gantryd: the Docker Engine API on top of containerd's gRPC API."""
