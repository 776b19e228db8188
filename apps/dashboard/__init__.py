"""The dashboard: three pages that read a store and compute nothing."""
