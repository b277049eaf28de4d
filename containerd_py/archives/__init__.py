"""Image archives: OCI layouts and Docker archives in a tar, read and written as streams."""
