"""Kernels: Python that writes the instructions of one operator each, on a `Context`."""
