"""The distribution client: registries over HTTP. Nothing here knows the stores."""
