"""One file per command: from words on the command line, which Hydra composes, to an exit code. The benchmark is here too.

Imports from every room.
"""
