"""gantry: the command line. It speaks HTTP to the engine and nothing else."""
