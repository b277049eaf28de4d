"""Content: blobs by digest, and the ingests they arrive by."""
