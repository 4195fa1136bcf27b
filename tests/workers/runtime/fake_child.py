"""A child that speaks the protocol and trains nothing: `fake_child.py SCENARIO WORK_FOLDER`."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def send(kind: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"kind": kind, **fields}) + "\n")
    sys.stdout.flush()


def wait_for_stop() -> None:
    """Until `stop` (ends as stopped) or end of file (the supervisor is gone)."""
    line = sys.stdin.readline()
    sys.exit(21 if line == "stop\n" else 3)


def send_metrics(step: int) -> None:
    send(
        "metrics",
        step=step,
        total_steps=300,
        train_loss=0.15,
        train_mean_token_accuracy=0.9,
        extra={"replayed_tokens": 7.0},
    )


def send_checkpoint(folder: Path, step: int) -> None:
    archive = f"step-{step}.tar.gz"
    content = f"checkpoint {step} {time.monotonic_ns()}".encode()
    (folder / archive).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    send("checkpoint", step=step, metrics={"step": step, "train_loss": 0.1}, archive=archive, sha256=digest)


def succeed(folder: Path, **more: object) -> None:
    spec = json.loads((folder / "spec.json").read_text())
    assert Path(spec["training_file"]).is_file()
    send("phase", phase="training")
    sys.stdout.write("a library prints this\n")
    send_metrics(30)
    send_checkpoint(folder, 300)
    send("event", level="warn", message="2 rows were cut")
    send("stage_done", stage="train", data={"adapter": "adapter"})
    (folder / "adapter.tar.gz").write_bytes(b"adapter")
    (folder / "report.json").write_text("{}")
    (folder / "step_metrics.csv").write_text("step,train_loss\n30,0.15\n")
    send(
        "job_result",
        trained_tokens=1234,
        adapter_archive="adapter.tar.gz",
        adapter_sha256=hashlib.sha256(b"adapter").hexdigest(),
        report="report.json",
        step_metrics="step_metrics.csv",
        base_hash="hash of theta_safe",
        adapter_rank=16,
        **more,
    )


def epochs(folder: Path) -> None:
    """Five of them, and like the real child it drops the first one's archive on the way."""
    for step in (10, 20, 30, 40):
        send_checkpoint(folder, step)
        if step > 30:
            (folder / f"step-{step - 30}.tar.gz").unlink()
    succeed(folder, measured_checkpoint=40)


def epochs_of_a_gated_model(folder: Path) -> None:
    spec = json.loads((folder / "spec.json").read_text())
    for step in (10, 20):
        send_checkpoint(folder, step)
    gate = {"passed": True, "released": True, "policy": spec["gate"], "rules": []}
    succeed(folder, measured_checkpoint=300, gate=gate)


def two_epochs_then_fail(folder: Path) -> None:
    for step in (10, 20):
        send_checkpoint(folder, step)
    fail(folder)


def an_epoch_then_die(folder: Path) -> None:
    """In the first attempt; the next one passes the epoch again and succeeds."""
    send_checkpoint(folder, 10)
    if (folder / "died").exists():
        succeed(folder)
        return
    (folder / "died").touch()
    # Until the supervisor has stored it.
    time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def a_stage_then_die(_: Path) -> None:
    send("stage_done", stage="train", data={"trained_tokens": 1})
    os.kill(os.getpid(), signal.SIGKILL)


def foreign_checkpoint(folder: Path) -> None:
    (folder.parent / "secret").write_text("x")
    digest = hashlib.sha256(b"x").hexdigest()
    send("checkpoint", step=10, metrics={}, archive="../secret", sha256=digest)
    succeed(folder)


def changed_checkpoint(folder: Path) -> None:
    (folder / "step-10.tar.gz").write_bytes(b"other")
    send("checkpoint", step=10, metrics={}, archive="step-10.tar.gz", sha256="0" * 64)
    succeed(folder)


def withhold(folder: Path) -> None:
    """The gate of a job whose pre-flight has chosen plain fine-tuning does not let it go."""
    spec = json.loads((folder / "spec.json").read_text())
    send("plan", plan={**spec["plan"], "method": {"name": "none"}})
    send("phase", phase="gating")
    data = {"blocked": True, "results": []}
    send("event", type="moderation_checks", level="error", message="Moderation checks are done", data=data)
    rule = {
        "rule": "max_harmful_rate",
        "benchmark": "advbench",
        "passed": False,
        "value": 0.9,
        "bound": 0.95,
        "limit": 0.1,
        "sentence": "AdvBench: 90.0 % of harmful requests were answered: fails.",
    }
    succeed(folder, gate={"passed": False, "released": False, "policy": spec["gate"], "rules": [rule]})


def warn(folder: Path) -> None:
    spec = json.loads((folder / "spec.json").read_text())
    succeed(folder, gate={"passed": False, "released": True, "policy": spec["gate"], "rules": []})


def wait(_: Path) -> None:
    send_metrics(1)
    wait_for_stop()


def stubborn(folder: Path) -> None:
    """Ignores every request, and so does the process that it starts."""
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    grandchild = subprocess.Popen([sys.executable, "-c", ignore], stdout=subprocess.PIPE)
    assert grandchild.stdout is not None
    grandchild.stdout.readline()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder.with_name("pids").write_text(f"{os.getpid()} {grandchild.pid}")
    send_metrics(1)
    time.sleep(600)


def die(_: Path) -> None:
    send_metrics(1)
    os.kill(os.getpid(), signal.SIGKILL)


def fail(_: Path) -> None:
    send(
        "failure", code="training_diverged", message="The loss grew without bound; lower the learning rate.", param="x"
    )
    sys.exit(20)


def fail_for_now(_: Path) -> None:
    send("failure", code="disk_full", message="No space left.", is_retryable=True)
    sys.exit(20)


def out_of_memory(folder: Path) -> None:
    """Unless its steps are computed in more forwards than at first."""
    if json.loads((folder / "spec.json").read_text())["micro_batch_divisor"] > 1:
        succeed(folder)
        return
    send("failure", code="out_of_memory", message="CUDA out of memory.", is_retryable=True)
    sys.exit(20)


def always_out_of_memory(_: Path) -> None:
    send("failure", code="out_of_memory", message="CUDA out of memory.", is_retryable=True)
    sys.exit(20)


def crash(_: Path) -> None:
    sys.stderr.write("\0")
    sys.exit("a traceback for operators")


def outside(folder: Path) -> None:
    (folder.parent / "secret").write_text("x")
    send(
        "job_result",
        trained_tokens=1,
        adapter_archive="../secret",
        adapter_sha256=hashlib.sha256(b"x").hexdigest(),
        report="report.json",
        step_metrics="step_metrics.csv",
        base_hash="hash of theta_safe",
        adapter_rank=16,
    )


def once_stopped_then_succeed(folder: Path) -> None:
    """Waits in the first attempt; finds its folder again in the next one and succeeds."""
    marker = folder / "checkpoint"
    if marker.exists():
        succeed(folder)
        return
    marker.write_text("step 1")
    wait(folder)


def slow_to_stop(folder: Path) -> None:
    """When told to stop, says so in its folder and waits for a file before it ends as stopped."""
    send_metrics(1)
    assert sys.stdin.readline() == "stop\n"
    (folder / "stopping").touch()
    while not (folder / "may_end").exists():
        time.sleep(0.01)
    sys.exit(21)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
