"""Other label formats to COCO."""
