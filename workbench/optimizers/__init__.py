"""Optimizers by name, for every training stage."""
