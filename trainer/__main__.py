"""`python -m trainer CONFIG [key.sub=value ...]`: one rank of a run.

What `dure train`, `accelerate launch -m trainer`, `torchrun -m trainer` and `srun python -m trainer` start. The signal
handlers stand before anything heavy is imported, so that a signal in the seconds of loading is kept, not fatal.
"""

from __future__ import annotations

import os
import sys

from trainer.stop_flag import LAUNCHER_PID, StopFlag, die_with_parent, outlive_terminal

USAGE = "usage: python -m trainer CONFIG [key.sub=value ...]"


def main(argv: list[str]) -> int:
    """Run one rank to its end; the exit code says how it ended (0 done, 85 stopped by a signal, 2 refused)."""
    stop = StopFlag()
    stop.install()
    die_with_parent()
    outlive_terminal()
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    from data_pipeline.config import ConfigError
    from data_pipeline.disk import DiskError
    from data_pipeline.stage import StageError
    from trainer.errors import RunError, TrainingStopped
    from trainer.resilience import FAILED, REFUSED

    try:
        from trainer.run import run_rank

        return run_rank(argv[0], argv[1:], stop=stop)
    except (TrainingStopped, DiskError) as error:
        _tell(error)
        return FAILED
    except (ConfigError, StageError, RunError) as error:
        _tell(error)
        return REFUSED


def _tell(error: Exception) -> None:
    """One message from the rank that has it; what every rank finds alike is told by the first one of each machine."""
    if os.environ.get("DURE_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    started = _group_is_up()
    if getattr(error, "told_by_main", False) or (not started and os.environ.get("LOCAL_RANK", "0") != "0"):
        return
    rank = os.environ.get("RANK", "0")
    who = f"[rank {rank}] " if rank != "0" and LAUNCHER_PID not in os.environ else ""  # dure's launcher names it
    print(f"{who}error: {error}", file=sys.stderr, flush=True)


def _group_is_up() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_initialized()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of gloo and DeepSpeed may outlive the group; the work is on disk, so nothing waits for them.
    os._exit(code)
