"""Curvature of the loss of any model: exact products, certified spectra, and what they say about fine-tuning."""
