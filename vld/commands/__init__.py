"""From the words of a command to an exit code: `main` has Hydra compose them, `preflight` checks all jobs, `train` checks what
they need, `launch` runs them, `task` is one of them. Beside these, a file per command, and the benchmark.

Imports from every room.
"""
