"""The errors of a run that a person can act on; the command line prints them without a traceback."""


class RunError(RuntimeError):
    """A run that can't start or go on as asked: `where: what, both values; what to do`.

    `told_by_main`: a rank before this one, mostly rank 0, raises and prints the same, so this rank need not.
    """

    def __init__(self, message: str, *, told_by_main: bool = False) -> None:
        super().__init__(message)
        self.told_by_main = told_by_main


class TrainingStopped(RunError):  # noqa: N818 - it says what happened, as the exit record does
    """A running training ended itself, with every finished step kept."""


class BadRollout(RunError):  # noqa: N818 - it says what happened
    """Answers that can't be learnt from, such as a reward that is NaN: the gate refuses the run, a step is refused."""
