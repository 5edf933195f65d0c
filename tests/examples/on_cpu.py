"""An example as `accelerate launch --use_fsdp` runs it, divided on a CPU too.

python -m tests.examples.on_cpu SCRIPT
"""

import runpy
import sys
from pathlib import Path

from tests.integrations.sharded_trainer import divided_on_a_cpu

if __name__ == "__main__":
    divided_on_a_cpu()
    script = Path(sys.argv[1])
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
