"""What an administrator installs: service units, certificates, completions."""
