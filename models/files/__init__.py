"""Weights from elsewhere, read into records."""
