"""Every setting with its default and meaning, the names of methods and datasets, the one error that is the user's.

Imports nothing of the project.
"""
