"""Both ways that ``benchmarks/learned.py`` compares compute the same thing, and a quick run writes a result."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are no part of the installed package

from benchmarks import learned  # noqa: E402
from benchmarks import published_learned as published  # noqa: E402
from benchmarks.distill import peak_memory  # noqa: E402
from ddanalysis import unroll  # noqa: E402
from ddanalysis.distill import label_loop, outer  # noqa: E402
from ddanalysis.distill.dataset_distillation import step_order  # noqa: E402
from ddanalysis.distill.dd_networks import starts  # noqa: E402

SMALL = learned.Settings(steps=2, batch_real=60)


def small_job(ipc, n=60):
    return learned.job_of(learned.made_up(n, torch.float64), ipc)


def close(found, expected):
    return float((found - expected).norm()) < 1e-9 * float(expected.norm())


@pytest.mark.parametrize(("networks", "alive"), [(1, False), (3, False), (3, True)])
def test_both_ways_have_the_same_gradients_of_images_and_step_sizes(networks, alive, monkeypatch):
    job, found, held = small_job(4), [], outer.update
    monkeypatch.setattr(outer, "update", lambda *given: found.append(given[3]) or held(*given))
    made = learned.our_images(job, SMALL, networks, 2)
    into_x, into_raw = found
    weights, real = unroll.flat(starts(job, {}, networks, False)), (job.data.train_x, job.data.train_y)
    own = published.begin_distillation(job, 2, 2)
    loss = published.distillation_step(own, networks, lambda k: weights[k], real, alive)
    order = step_order(10, 4, 2, 1)
    for rows, x in zip(order, own.images, strict=True):
        assert close(into_x[rows], x.grad)
        assert torch.allclose(made.x[rows], x.detach(), rtol=0, atol=1e-6)  # after the same step of Adam
    assert close(into_raw, own.raw.grad[:, 0])
    assert float(made.history["loss"][0]) == pytest.approx(float(loss), rel=1e-6)


def test_both_ways_have_the_same_gradient_of_labels_in_the_same_states(monkeypatch):
    task, teach, states = learned.label_task(small_job(learned.IPC_OF_LABELS, 240), SMALL)
    own, found, held = published.begin_labels(task), [], label_loop.Task.moved
    monkeypatch.setattr(label_loop.Task, "moved", lambda *given: found.append(given[2]) or held(*given))
    for iteration in range(4):
        states, numbers = teach(task, states, iteration)
        expected, (loss, error, inner) = published.label_step(own, task.batch(iteration), task.real(iteration))
        assert close(found[-1], expected)
        mine = [numbers["loss"], 1 - numbers["accuracy"], numbers["inner_loss"]]
        assert mine == pytest.approx([loss, error, inner], abs=1e-9)
    weights = torch.cat([part.detach().flatten() for part in own.weights])
    assert torch.allclose(states["learned"].weights, own.y.detach(), rtol=0, atol=1e-9)
    assert torch.allclose(states["network"].weights[0], weights, rtol=0, atol=1e-9)
    assert float((own.y.detach() - task.begin).abs().max()) > 1e-3


def test_loaded_images_are_the_target_images():
    task, *_ = learned.label_task(small_job(learned.IPC_OF_LABELS, 240), SMALL)
    data = task.job.data
    x, y = zip(*(published.Decoded(data)[i] for i in (0, 17, 239)), strict=True)
    assert torch.allclose(torch.stack(x), data.train_x[[0, 17, 239]].float(), rtol=0, atol=1e-5)
    assert list(y) == data.train_y[[0, 17, 239]].tolist()
    batches = list(published.loader(task))
    assert [len(labels) for _, labels in batches] == [60, 60, 60, 20]
    loaded, target = torch.cat([images for images, _ in batches]), data.train_x[task.rows].float()
    assert torch.allclose(loaded.mean((1, 2, 3)).sort().values, target.mean((1, 2, 3)).sort().values, atol=1e-5)


def test_graphs_of_all_networks_take_more_memory_than_those_of_one():
    job = small_job(4)
    real = job.data.train_x[:5].float(), job.data.train_y[:5]
    own = published.begin_distillation(learned.job_of(learned.made_up(10), 4), 2, 2)
    freed, alive = (
        peak_memory(lambda kept=kept: published.distillation_step(own, 4, published.drawn(), real, kept))
        for kept in (False, True)
    )
    assert alive > 2 * freed


def test_networks_are_drawn_anew():
    fresh = published.drawn()
    first, second = published.unflat(fresh(0)), published.unflat(fresh(0))
    assert not torch.equal(first[0], second[0])
    assert float(first[1].abs().max()) == 0
    assert float(first[4].std()) == pytest.approx((2 / (400 + 120)) ** 0.5, rel=0.02)


def test_rows_say_what_is_reached():
    settings = learned.Settings(images=(10,), networks=(1, 16), steps=2, rounds=2)
    seconds, peak = {}, {}
    for networks, theirs, mine in ((1, 4e6, 1e6), (16, 6e6, 2e6)):
        for passes in settings.lengths:
            name = learned.dd_name(10, networks, passes)
            seconds |= {name: [1.0, 2.0], f"{name}/{learned.FREED}": [2.0, 2.0]}
            peak[name] = mine * passes
            peak |= {f"{name}/{learned.FREED}": theirs * passes, f"{name}/{learned.ALIVE}": 5e6 * passes}
    one, many = learned.images_cost(seconds, peak, settings)
    assert (one["bar"], one["reached"], many["bar"], many["reached"]) == (None, None, 1.0, True)
    assert (many["ratio"], many["lowest"], many["highest"]) == (pytest.approx(4 / 3), 1, 2)
    rows = learned.memory_of_a_step(peak, settings)
    assert [row["ours MB"] for row in rows] == [0.5, 0.5, 1, 1]
    assert [row["ratio"] for row in rows] == [4, 5, 3, 2.5]
    assert [row["reached"] for row in rows] == [None, None, True, False]
    seconds = {"ld": [1.0], f"ld/{learned.LOADED}": [1.9], f"ld/{learned.TENSORS}": [0.5]}
    loaded, tensors = learned.labels_cost(seconds, dict.fromkeys(seconds, 1))
    assert (loaded["ratio"], loaded["reached"]) == (1.9, False)
    assert (tensors["ratio"], tensors["reached"]) == (0.5, None)


def test_a_quick_run_writes_its_result(tmp_path):
    out = tmp_path / "learned.json"
    command = [sys.executable, "-m", "benchmarks.learned", "--quick", "--threads", "1", "--out", str(out)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    result = json.loads(out.read_text())
    images, memory, labels = (
        result[k] for k in ("dataset distillation", "memory of one more inner step", "label distillation")
    )
    assert [(row["images"], row["networks"], row["bar"]) for row in images] == [(10, 1, None), (10, 16, 1)]
    assert [(row["networks"], row["bar"]) for row in memory] == [(1, None), (1, None), (16, 3), (16, 3)]
    assert [(row["published"], row["bar"]) for row in labels] == [(learned.LOADED, 2), (learned.TENSORS, None)]
    for row in (*images, *labels):
        assert min(row["published s"], row["ours s"], row["lowest"], row["published MB"], row["ours MB"]) > 0
    assert memory[0]["ours MB"] == pytest.approx(61_706 * 4 / 1e6, rel=1e-2)  # one copy of the weights of LeNet
    assert memory[3]["published MB"] > 10 * memory[2]["published MB"]
    assert all(len(values) == 2 for values in result["seconds"].values())
    assert result["environment"]["threads"] == 1 and result["settings"]["rounds"] == 2
    assert sum(line.startswith("| ---") for line in shown.splitlines()) == 3  # tables


@pytest.mark.parametrize("wrong", ["--rounds", "--threads"])
def test_refuses_nothing_to_measure(wrong, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["learned", "--out", str(tmp_path / "learned.json"), wrong, "0"])
    with pytest.raises(SystemExit):
        learned.main()
    assert "rounds and threads must be at least 1" in capsys.readouterr().err
