"""Every exception of the project, grouped by what the operator should do about it.

    C360Error
    ├── ConfigError       fix a setting, an argument or a control row
    ├── ContractError     fix the data at its producer
    ├── UnreadableError   one object of many can't be had: the others go on
    ├── TableError        a table of the lake is not as it was left: see the runbook
    ├── UnavailableError  a service does not answer: start it or wait, the run can be retried
    ├── ConflictError     another worker was faster: reload and redo the pure work
    ├── RemovalLimitError  more would be removed than is usual: look, then say so
    └── InvariantError    stop: what must always hold does not, never retried

A message says what was seen, what would be right, and the next step.
"""


class C360Error(Exception):
    """The root of every error that this project raises on purpose."""

    exit_code = 1


class ConfigError(C360Error):
    """A setting, an argument or a control row is wrong; nothing was changed."""

    exit_code = 2


class ContractError(C360Error):
    """Data breaks its contract in a way that can't be set aside line by line."""

    exit_code = 2


class UnavailableError(C360Error):
    """A service can't be reached; the message names it and how to start it."""

    exit_code = 3


class UnreadableError(C360Error):
    """One object can't be had, for a reason of its own; the message names it. It is tried again with the next run."""


class TableError(C360Error):
    """A table of the lake can't be read or written, most often as another engine left it; the message names it."""


class ConflictError(C360Error):
    """Another worker committed first, more often than the retries allow."""


class RemovalLimitError(C360Error):
    """More would be removed than the removal limit lets pass; nothing was."""


class InvariantError(C360Error):
    """The accounting does not add up or the graph differs from its archive."""
