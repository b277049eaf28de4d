"""The Dockerfile language, sans-IO: text in, typed instructions or an error with its line out."""
