"""Models: the one seam to transformers and TransformerLens (build, load, save, fingerprint, anatomy, lens)."""
