"""The one error that a user's input can cause."""


class InputError(ValueError):
    """Bad input, said in one plain sentence that names the file, key or value and what to do.

    The command line prints it and exits with code 2; everything else is a defect and keeps its traceback.
    """
