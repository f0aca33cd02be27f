"""Two real processes under torchrun: they know each other, share the batch, and write one result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from accelerate import PartialState
from latentdiff.training.launch import main
code = main(sys.argv[1:])
state = PartialState()
Path(f"process-{state.process_index}").write_text(str(state.num_processes))
sys.exit(code)
"""


@pytest.mark.parametrize("stage", ["vae", "clap"])
def test_two_processes_train_one_model(stage: str, tones: Path, tmp_path: Path) -> None:
    script = tmp_path / "train_and_say.py"
    script.write_text(SCRIPT)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", script,
        ROOT / "configs" / "debug" / f"audio_{stage}.yaml", f"data.path={tones}", f"output={tmp_path / 'run'}",
        "data.held_out=0.2", "data.seconds=0.512", "train.batch_size=2", "train.max_steps=3",
        "train.checkpoint_every=3", "train.validate_every=3", "train.trackers=[]", "train.overfit_check_steps=2",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / f"process-{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
    manifest = json.loads((tmp_path / "run" / "checkpoints" / "step-00000003" / "manifest.json").read_text())
    assert "random_states_1.pkl" in manifest["files"]  # the second rank took part
    assert (tmp_path / "run" / stage / "config.json").is_file()
