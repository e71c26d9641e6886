"""One runner a runtime behind one interface."""
