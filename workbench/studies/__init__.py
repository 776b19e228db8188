"""Studies: a YAML file that is the whole experiment, its graph of stages, and the handle that runs and reads it."""
