"""SIGKILL at twenty random steps: the next start goes on from the last state, to the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("worker_train.py")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL")


def test_a_stage_that_is_killed_twenty_times_ends_with_the_same_weights(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for seed in ("killed", "whole"):
        command = [sys.executable, str(WORKER), seed, str(tmp_path / seed), "7"]
        subprocess.run(command, env=environment, check=True, timeout=300)
    assert json.loads((tmp_path / "killed/killed.json").read_text()) == [signal.SIGKILL] * 20
    whole, pieces = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == pieces.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, pieces[name]), name
