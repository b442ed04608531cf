"""From archives, via folders and the image store, to batches on the device.

Imports from `machine` and `config`.
"""
