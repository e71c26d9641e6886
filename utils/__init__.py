"""Geometry, metrics, plots, run folders and flags shared by all scripts."""
