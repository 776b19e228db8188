"""Engines: run a graph of stages here, in a local pool of processes, or elsewhere; stages pass paths, never models."""
