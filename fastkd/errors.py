"""The exceptions that callers may want to tell apart."""


class BackendUnavailable(RuntimeError):
    """A backend asked for by name cannot serve the call; the message says why."""


class RunFailed(RuntimeError):
    """What was asked is right, but the work cannot go on; one line that says why."""


class InputError(ValueError):
    """A config, file or command line is wrong; one line that names it and what was expected."""


class NotPrepared(InputError):
    """There is no prepared corpus, or it is not the one that the config asks for."""


class Forbidden(InputError):
    """What is there may not be read; it is as it was written, for all that is known."""


class Stopped(Exception):
    """A signal has stopped the work, which is saved and can go on."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number
