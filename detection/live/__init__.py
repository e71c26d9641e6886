"""Live streams: cameras and addresses."""
