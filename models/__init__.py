"""Networks as records, their layout, and every pass over them."""
