"""The files for clusters are read by the programs that they are for."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

FOLDER = Path(__file__).parents[2] / "configs" / "accelerate"


@pytest.mark.parametrize(("name", "machines", "processes"), [("one_node", 1, 8), ("two_nodes", 2, 16)])
def test_accelerate_reads_its_configurations(name: str, machines: int, processes: int) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert config.distributed_type == "MULTI_GPU"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_slurm_script_starts_each_task_as_a_rank_and_requeues_on_143(tmp_path: Path) -> None:
    """With stand-ins for Slurm's commands: srun runs one task, which ends as a stopped training does."""
    commands = {
        "srun": 'shift; SLURM_PROCID=3 SLURM_LOCALID=1 SLURM_NTASKS=4 exec "$@"',
        "scontrol": 'echo "$@" >> calls; echo node1',
        "latentdiff": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR" "$@" > task; exit "$CODE"',
    }
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    for code in (143, 1, 0):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "CODE": str(code)}
        command = ["bash", FOLDER / "slurm.sh", "some.yaml", "output=a b"]
        assert subprocess.run(command, cwd=tmp_path, env=environment, check=False).returncode == code
        assert (tmp_path / "task").read_text() == "3 1 4 node1 train some.yaml output=a b\n"
        assert ("requeue 7" in (tmp_path / "calls").read_text()) == (code == 143)
        (tmp_path / "calls").unlink()


def test_the_kubernetes_job_gives_torchrun_less_time_than_it_has_itself() -> None:
    pod = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())["spec"]["template"]["spec"]
    (timeout,) = [word.partition("=")[2] for word in pod["containers"][0]["command"] if "shutdown-timeout" in word]
    assert int(timeout) < pod["terminationGracePeriodSeconds"]
