"""Bundled study files."""
