"""Exporters: one module for each format that other programs read; see `ambient_sci.datasets.exporting`."""
