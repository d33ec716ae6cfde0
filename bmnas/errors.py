"""The one exception that means: the user's input is wrong."""


class UserError(Exception):
    """The input cannot be used; the message is one line for the person who gave it.

    A message says what was received, what was expected and what to do. The command line
    prints it after ``error:`` and exits with status 2, without a traceback.
    """
