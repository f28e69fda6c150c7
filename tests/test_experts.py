"""The pool of experts: what they are, that it is shared, kept and resumed."""

from dataclasses import replace

import pytest
import torch
from test_distill import job

from ddanalysis import augment, networks, store, training, unroll
from ddanalysis.distill import experts
from ddanalysis.distill.experts import pool_bytes, train_experts
from ddanalysis.seeding import stream_seed
from ddanalysis.store import Checkpoint
from ddanalysis.training import Recipe

POOL = Recipe(3, None, 12, learning_rate=0.05, momentum=0.0, augment=augment.DSA_DIGITS)


def keeper(folder, log=None, progress=None):
    """What several sets use, in files; checkpoints are written after every update."""

    def share(kind, name, version, arguments, build):
        path = folder / kind / f"{name}.safetensors"
        description = {"version": version, "arguments": arguments}
        if log is not None:
            log.append(name)
        if not store.matches(path, description):
            checkpoint = Checkpoint(path.with_suffix(".checkpoint"), description, seconds=0)
            store.write(path, build(checkpoint, progress), description)
            checkpoint.remove()
        return store.read(path)[0]

    return share


def same(one, other):
    assert len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_experts_are_networks_trained_for_so_many_epochs():
    the_job = job()
    pool = train_experts(the_job, 2, POOL)
    assert len(pool) == 2 and pool[0].shape == (4, the_job.architecture.parameter_count())
    seed = stream_seed(0, "expert", 1)
    net = networks.create(the_job.architecture, [seed])
    data = the_job.data
    for epochs in (0, 1, 3):
        trained = training.train(net, data.train_x, data.train_y, replace(POOL, epochs=epochs), [seed])
        assert torch.allclose(pool[1][epochs], unroll.flat(trained.networks)[0], atol=1e-5)
    assert not torch.equal(pool[0][0], pool[1][0])


def test_a_pool_has_a_seed_of_its_own():
    pool = train_experts(job(), 2, POOL)
    same(pool, train_experts(job(ipc=5, seed=7), 2, POOL))
    assert not torch.equal(pool[0], train_experts(job(), 1, POOL, seed=1)[0])


def test_parameters_alone_are_kept_in_float32():
    the_job = job(dtype=torch.float64, norm="batch")
    pool = train_experts(the_job, 2, replace(POOL, epochs=1))
    assert pool[1].shape == (2, the_job.architecture.parameter_count()) and pool[1].dtype == torch.float32
    assert pool_bytes(the_job.architecture, 2, 1) == sum(4 * own.numel() for own in pool)


@pytest.mark.parametrize("together", [1, 8])
def test_a_second_set_trains_no_expert(together, tmp_path, monkeypatch):
    monkeypatch.setattr(experts, "networks_together", lambda *_: together)
    share = keeper(tmp_path)
    pool = train_experts(replace(job(), share=share), 3, POOL)
    same(pool, train_experts(job(), 3, POOL))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3 and not list(tmp_path.rglob("*.checkpoint"))
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("an expert was trained"))
    same(pool, train_experts(replace(job(5, seed=1), share=share), 3, POOL))


def test_other_epochs_and_another_count_are_another_pool(tmp_path, monkeypatch):
    monkeypatch.setattr(experts, "networks_together", lambda *_: 2)
    done = []
    shared = replace(job(), share=keeper(tmp_path, progress=done.append))
    three = train_experts(shared, 3, POOL)
    for count, recipe, updates in ((2, POOL, 2 * 9), (3, replace(POOL, epochs=1), 3 * 3), (3, POOL, 0)):
        done.clear()
        other = train_experts(shared, count, recipe)
        assert sum(done) == updates
        for e in range(count):  # the same experts, cut short
            assert torch.allclose(other[e], three[e][: len(other[e])], atol=1e-5)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3 + 2 + 3


@pytest.mark.parametrize("kept", [True, False], ids=["in files", "beside the checkpoint"])
@pytest.mark.parametrize("together", [1, 2])
def test_resumes_exactly_wherever_it_stopped(kept, together, tmp_path, monkeypatch):
    monkeypatch.setattr(experts, "networks_together", lambda *_: together)
    whole = train_experts(job(), 3, POOL)

    class Stop(Exception):
        pass

    done = []

    def stop(n):
        done.append(n)
        if len(done) in (3, 12, 14):  # in the first group, and later
            raise Stop

    checkpoint = None if kept else Checkpoint(tmp_path / "x.checkpoint", {}, seconds=0)
    the_job = replace(
        job(), checkpoint=checkpoint, share=keeper(tmp_path, progress=stop) if kept else None, progress=stop
    )
    for _ in range(3):
        with pytest.raises(Stop):
            train_experts(the_job, 3, POOL)
    same(whole, train_experts(the_job, 3, POOL))
    assert sum(done) <= 3 * 9 + 3 * together  # nothing but the interrupted updates was done twice


def test_a_large_pool_is_read_from_its_files_when_wanted(tmp_path, monkeypatch):
    asked = []
    shared = replace(job(), share=keeper(tmp_path, asked))
    in_memory = train_experts(shared, 2, POOL)
    assert all(isinstance(own, torch.Tensor) for own in in_memory.kept) and len(asked) == 2
    monkeypatch.setattr(experts, "IN_MEMORY", 0)
    streamed = train_experts(shared, 2, POOL)
    assert not any(isinstance(own, torch.Tensor) for own in streamed.kept) and len(asked) == 4
    same(streamed, in_memory)
    assert len(asked) == 6 and asked[4] == asked[0] != asked[5]
    next(tmp_path.rglob("*_0of2.safetensors")).unlink()
    same(streamed, in_memory)  # made anew
    alone = train_experts(job(), 2, POOL)
    assert all(isinstance(own, torch.Tensor) for own in alone.kept)  # there are no files to read from
