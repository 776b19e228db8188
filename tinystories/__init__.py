"""Training on real stories."""
