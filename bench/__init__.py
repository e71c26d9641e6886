"""The signed benchmark."""
