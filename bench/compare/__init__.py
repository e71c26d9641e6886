"""Many networks trained alike on one set, and which of them is best."""
