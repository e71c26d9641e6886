"""COCO annotation files, from disk to clean records."""
