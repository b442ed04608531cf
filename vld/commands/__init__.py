"""From the words of a command to an exit code. `main` composes them by Hydra, `preflight` checks them, `launch` runs the jobs,
`task` is one of them; beside these a file per command, and the benchmark.

Imports from every room.
"""
