"""What a seed promises: the whole way from data to score, in one test each."""

import torch

import condensate


def condensed(data, seed: int, order: tuple[str, ...] = ()) -> tuple[condensate.SyntheticDataset, tuple[float, ...]]:
    streams = condensate.Streams(seed)
    for name in order:  # what is drawn from other streams first must not matter
        torch.rand(3, generator=streams(name))
    stored = condensate.LowRank(6, data.shape, rank=1)
    stored.reset_(streams("start"))
    synthetic = condensate.SyntheticDataset(stored, condensate.class_major(3, 2), mean=data.mean, std=data.std)
    network = condensate.build_network("convnet", data.shape, 3, streams("network"), width=8, depth=1)
    matching = condensate.DistributionMatching(data.train, network, condensate.Augment(), streams, batch_real=5)
    condensate.condense(synthetic, matching, episodes=4, lr=1.0)
    options = {"width": 8, "depth": 1}
    score = condensate.evaluate(
        synthetic, data.test, 3, streams, repeats=2, epochs=3, network_options=options, augment=condensate.Augment()
    )
    return synthetic, score.accuracies


def test_seed__same_seed_same_bytes_and_scores(toy_data, tmp_path):
    first, scores = condensed(toy_data, 0)
    again, scores_again = condensed(toy_data, 0, order=("x", "real", "augment"))
    first.save(tmp_path / "a.safetensors")
    again.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert scores == scores_again


def test_seed__another_seed_other_images(toy_data):
    assert not torch.equal(condensed(toy_data, 0)[0].images(), condensed(toy_data, 1)[0].images())


def test_seed__global_random_state_neither_read_nor_changed(toy_data, random_state):
    before = random_state()
    first = condensed(toy_data, 0)[0]
    assert random_state() == before
    torch.manual_seed(123)
    assert torch.equal(first.images(), condensed(toy_data, 0)[0].images())
