"""Importers: one module for each format of instruments and tools; see `ambient_sci.datasets.importing`."""
