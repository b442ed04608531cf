"""What a run stands on: device, signals, locks, whole files, disk, terminal, streams of random numbers.

Imports from `config`.
"""
