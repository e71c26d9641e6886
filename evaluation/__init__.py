"""Accuracy of detections, its figures, plots and pages."""
