"""The one family of errors that a user can remedy."""

import errno


class UserError(ValueError):
    """Something the user can remedy. The message names the option or file, the value, and what to do."""


def cannot_be_read(where: object, error: OSError) -> UserError:
    """The error of a file or folder that the system does not let us read."""
    remedy = REMEDIES.get(error.errno or 0, "check the path and its disk")
    return UserError(f"{where}: cannot be read ({error.strerror}); {remedy}")


REMEDIES = {
    errno.EACCES: "make it readable for you, or give another",
    errno.EPERM: "make it readable for you, or give another",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOENT: "check the path",
}
"""What to do about a file that cannot be read."""
