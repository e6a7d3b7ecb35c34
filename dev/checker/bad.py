"""The one exception of decoding."""


class Bad(Exception):
    """A record that must be dead-lettered: the reason, and the field if one is at fault."""

    def __init__(self, reason, field=None):
        super().__init__(reason if field is None else f"{reason} ({field})")
        self.reason = reason
        self.field = field
