"""Exported files: writers, parity, the web folder."""
