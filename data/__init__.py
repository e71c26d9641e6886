"""Annotation files and images, from disk to training batches."""
