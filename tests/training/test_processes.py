"""Two real processes under torchrun: they know each other, share the batch, and write one result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORLD = "from accelerate import PartialState; print('world', PartialState().num_processes, flush=True)"


@pytest.mark.parametrize("stage", ["vae", "clap"])
def test_two_processes_train_one_model(stage: str, tones: Path, tmp_path: Path) -> None:
    script = tmp_path / "train_and_say.py"
    script.write_text(
        f"import sys\nfrom latentdiff.training.launch import main\ncode = main(sys.argv[1:])\n{WORLD}\nsys.exit(code)\n"
    )
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
    assert done.stdout.count("world 2") == 2
    manifest = json.loads((tmp_path / "run" / "checkpoints" / "step-00000003" / "manifest.json").read_text())
    assert "random_states_1.pkl" in manifest["files"]  # the second rank took part
    assert (tmp_path / "run" / stage / "config.json").is_file()
