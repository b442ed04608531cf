"""Every setting, declared once (`settings`), the names of methods and datasets (`names`), the one error that is the user's.

Standard library alone; imports nothing of the project.
"""
