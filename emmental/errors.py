"""The one error that a user's input can cause: a bad flag, file, folder or checkpoint.

The scripts print it as one line and exit with status 2; anything else that is raised is a fault of the program.
This module imports nothing, so that every reader and check can use it before torch is loaded.
"""


class InputError(Exception):
    """Bad input from the user; the message is one line that names the flag, or the file and the line in it."""
