"""Annotation files and pictures, from disk to training batches."""
