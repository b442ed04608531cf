"""Weights & Biases: a faithful copy of what is in run directories, made by a process of its own.

What goes there is in `content`. Imports from `study` and below.
"""
