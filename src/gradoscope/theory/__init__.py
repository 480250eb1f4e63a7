"""Bounds and closed forms, as plain functions with the theorem in the docstring. They import nothing of the rest."""
