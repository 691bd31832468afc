"""Workers agree with one process, and no worker is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agartha.core.errors import CapacityError, ConfigError, Interrupted, NumericsError
from agartha.core.files import is_alive, write_atomic
from agartha.learn.parallel import Parallel, launch
from agartha.learn.shared_memory import PIECE
from agartha.model.kernels.build import library


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def rows():
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def gradients(parallel: Parallel):
    model = small_model()
    if not parallel.is_first:
        torch.nn.init.zeros_(model[0].weight)
    parallel.broadcast_parameters(model)
    mine = rows().chunk(parallel.world_size)[parallel.rank]
    (model(mine).pow(2).sum() / 8).backward()
    grads = [parameter.grad for parameter in model.parameters()]
    parallel.all_reduce_sum(grads)
    return [grad.tolist() for grad in grads]


def gathered(parallel: Parallel):
    parallel.barrier()
    part = torch.full((2, 3), float(parallel.rank), dtype=torch.bfloat16)
    whole = parallel.all_gather(part)
    return whole.float().tolist(), parallel.all_gather_object({"rank": parallel.rank}), torch.get_num_threads()


def exchanges(parallel: Parallel, shared: bool):
    """Sums and gathers of several sizes, a piece of shared memory and its neighbours among them; late ranks included."""
    if not shared:
        parallel = replace(parallel, memory=None)
    torch.manual_seed(parallel.rank)
    found = []
    for turn, size in enumerate((1, 15, PIECE // 4 - 1, PIECE // 4, PIECE // 4 + 1, 5 * PIECE // 8, 17)):
        time.sleep(0.03 * (turn % parallel.world_size == parallel.rank))
        total, part = torch.randn(size), torch.randn(size)[: size // 2 + 1].bfloat16()
        counts = [torch.tensor([parallel.rank + 1]), torch.tensor([[7]])]
        parallel.all_reduce_sum([total])
        parallel.all_reduce_sum(counts)
        found += [total.double().sum().item(), total[-1].item(), [count.tolist() for count in counts]]
        found += [
            parallel.all_gather(part).double().sum(1).tolist(),
            parallel.all_gather_object("x" * (size % 1000 + parallel.rank)),
        ]
    return found, parallel.memory is not None


def second_worker_refuses(parallel: Parallel):
    if parallel.rank == 1:
        raise NumericsError("loss=nan is not finite.", hint="lower the learning rate.")
    parallel.barrier()


def second_worker_has_a_bug(parallel: Parallel):
    return [0][parallel.rank] if parallel.rank else parallel.barrier()


def second_worker_is_killed(parallel: Parallel):
    if parallel.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def report_and_sleep(parallel: Parallel, folder: str):
    write_atomic(f"{folder}/{parallel.rank}", str(os.getpid()))
    time.sleep(60)


def test_gradients_of_two_workers_equal_those_of_one_process():
    together, alone = launch(gradients, 2), launch(gradients, 1)
    for ours, theirs in zip(together, alone):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("workers", [2, 3])
def test_shared_memory_gives_what_the_process_group_gives(workers: int):
    (ours, is_shared), (theirs, is_not) = launch(exchanges, workers, True), launch(exchanges, workers, False)
    assert is_shared == (library() is not None and sys.platform == "linux") and not is_not
    if workers == 2:
        assert ours == theirs
    for a, b in zip(ours, theirs):  # three numbers may be added in another order
        assert a == (pytest.approx(b, rel=1e-5, abs=1e-3) if isinstance(b, float) else b)


def test_gathering_keeps_the_order_of_ranks_and_workers_use_one_thread():
    whole, ranks, threads = launch(gathered, 2)
    assert torch.equal(torch.tensor(whole), torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, 2, 3))
    assert ranks == [{"rank": 0}, {"rank": 1}]
    assert threads == 1


def test_a_worker_s_own_error_reaches_the_parent_with_its_hint():
    with pytest.raises(NumericsError, match=r"loss=nan is not finite.\nhint: lower the learning rate."):
        launch(second_worker_refuses, 2)


def test_a_bug_in_a_worker_shows_its_traceback():
    with pytest.raises(RuntimeError, match="IndexError"):
        launch(second_worker_has_a_bug, 2)


def test_a_killed_worker_ends_the_others():
    began = time.monotonic()
    with pytest.raises(CapacityError, match="worker 1 was killed"):
        launch(second_worker_is_killed, 2)
    assert time.monotonic() - began < 30


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_workers_die_with_a_killed_parent(tmp_path):
    program = (
        f"from {__name__} import *\nif __name__ == '__main__':\n    launch(report_and_sleep, 2, {str(tmp_path)!r})\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(program)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path.cwd())])
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path})
    try:
        _until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
    finally:
        parent.kill()
        parent.wait()
    pids = [int((tmp_path / rank).read_text()) for rank in "01"]
    _until(lambda: not any(is_alive(pid) for pid in pids))


def sleep_until_interrupted(parallel: Parallel, folder: str):
    write_atomic(f"{folder}/{parallel.rank}", "ready")
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        write_atomic(f"{folder}/saved_{parallel.rank}", "saved")
        raise Interrupted(f"stopped at step 7 on rank {parallel.rank}.") from None


def test_ctrl_c_reaches_each_worker_once_and_lets_it_save(tmp_path):
    parent = os.getpid()

    def press_ctrl_c():
        _until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
        os.kill(parent, signal.SIGINT)

    presser = threading.Thread(target=press_ctrl_c)
    presser.start()
    with pytest.raises(Interrupted, match="stopped at step 7"):
        launch(sleep_until_interrupted, 2, str(tmp_path))
    presser.join()
    assert (tmp_path / "saved_0").exists() and (tmp_path / "saved_1").exists()


def _until(claim, limit_s=30.0):
    deadline = time.monotonic() + limit_s
    while not claim():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


def test_zero_workers_are_refused():
    with pytest.raises(ConfigError, match="workers=0"):
        launch(gradients, 0)
