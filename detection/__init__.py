"""From image files, videos and streams to detections."""
