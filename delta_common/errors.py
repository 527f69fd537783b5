"""The one family of errors that a user can remedy."""


class UserError(ValueError):
    """Something the user can remedy. The message names the option or file, the value, and what to do."""
