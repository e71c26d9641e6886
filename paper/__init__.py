"""The paper's tables: claims beside measured figures."""
