"""Every setting, declared once (`settings`), the names of methods and datasets (`names`), and `UserError`, for what the user
can fix.

Standard library alone; imports nothing of the project.
"""
