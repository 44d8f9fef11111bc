"""Everything that `config` raises on purpose."""


class ConfigError(Exception):
    """The configuration cannot be used; the message lists every mistake with its key and line."""
