"""System services: device, signals, locks, atomic file writes, disk, terminal, streams of random numbers.

Imports from `config`.
"""
