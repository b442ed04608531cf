"""Many runs: the jobs of a sweep, the planned runs of a study and their progress, the members of combinations, and
the soups and ensembles made of them (`combination`).

Imports from `runs` and below; only `jobs` knows Hydra and omegaconf.
"""
