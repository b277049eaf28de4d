"""Images as Docker shows them, kept as containerd keeps them: names, manifests, layers, and what is done to them."""
