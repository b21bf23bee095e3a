"""The two ways a run ends for a reason the user can mend; their message is the one line the user sees."""


class UserError(Exception):
    """Something the user asked for cannot be had; the message names the key, file or field and what to do."""


class DataFault(UserError):
    """A record that cannot be read: the message names file, line and field.

    Args:
        where: file and line (or data set, split and row) of the record.
        field: the path of the field inside the record, as ``dialog.3.speaker``.
        reason: what is wrong with it.
    """

    def __init__(self, where: str, field: str, reason: str) -> None:
        super().__init__(f"{where}: {field}: {reason}" if field else f"{where}: {reason}")
        self.where, self.field, self.reason = where, field, reason


def first_line(error: BaseException) -> str:
    """What another library says of a mistake, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
