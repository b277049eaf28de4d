"""Moving images: pull, push, import, export, tag. Services are thin shells over ``transfers.Transfers``."""
