"""Measures of generated images against real ones: each a plain function with its source."""
