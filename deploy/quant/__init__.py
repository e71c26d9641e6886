"""INT8 by post-training quantisation."""
