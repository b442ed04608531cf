"""From words on the command line, which Hydra composes, to an exit code: `main` (words), `preflight` (checks), `launch` (jobs),
`task` (one of them). Beside them a file per command, and the benchmark.

Imports from every room.
"""
