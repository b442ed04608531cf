"""Many runs: the jobs of a sweep, the runs that a study plans and how far they are, the members of combinations, combinations.

Imports from `runs` and below; only `jobs` knows Hydra and omegaconf.
"""
