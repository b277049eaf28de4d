"""What Prometheus reads of containerd-py: calls, containers, this process. Names are containerd's where it has them."""
