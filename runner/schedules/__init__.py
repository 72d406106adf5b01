"""Decoding schedules: the table of steps, its file, its checker, and one module for each order of cells."""
