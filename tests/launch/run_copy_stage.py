"""`python run_copy_stage.py FOLDER FAULT`: runs a CopyStage on 2 workers, whose task `copy-1` has the fault."""

import sys
from pathlib import Path

from launch.tasks import run_stage
from tests.launch.copy_stage import CopyStage

if __name__ == "__main__":
    run_stage(CopyStage(Path(sys.argv[1]), faults=(("copy-1", sys.argv[2]),)), 2, label="copy")
