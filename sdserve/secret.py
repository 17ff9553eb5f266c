"""A text that no log shows by accident."""


class Secret(str):
    """A string, such as a URL with a password, whose repr hides it.

    Not pydantic's SecretStr: Serve wants its policy arguments JSON-serializable, and logs them.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'****'"
