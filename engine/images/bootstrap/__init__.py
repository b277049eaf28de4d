"""Base images from the distribution's own packages, for machines that reach no registry."""
