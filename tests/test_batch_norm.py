"""Batch normalization over the global batch, with real process groups."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.parallel import DistributedDataParallel

from stylegan.batch_norm import BatchNorm
from stylegan.losses import d_logistic, gradient_penalty
from stylegan.networks import dcgan
from tests.processes import ProcessGroup, free_port, run_ranks


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_batch_norm_in_one_process_is_torchs():
    """Outputs, gradients, gradients of gradients and running statistics, in float64."""
    norm = BatchNorm(3, torch.Generator().manual_seed(0)).double()
    weight, bias = (p.detach().clone().requires_grad_() for p in norm.parameters())
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    x = (2 + 3 * normal(5, 3, 4, 2, dtype=torch.float64)).requires_grad_()

    ours = norm(x)
    theirs = batch_norm(x, mean, var, weight, bias, training=True, momentum=0.1)

    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.running_var, var, rtol=1e-12, atol=0)
    results = []
    for y, parameters in ((ours, list(norm.parameters())), (theirs, [weight, bias])):
        (slope,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        results.append([slope, *torch.autograd.grad(slope.square().sum(), [x, *parameters])])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_batch_norm_in_eval_mode_takes_the_running_statistics():
    norm = BatchNorm(3, torch.Generator().manual_seed(0))
    x = 2 + 3 * normal(64, 3, 4, 4)
    for _ in range(100):
        norm(x)

    norm.eval()
    expected = batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm.running_mean, x.mean(dim=(0, 2, 3)), rtol=1e-3, atol=0)
    torch.testing.assert_close(norm(x[:1]), norm(x)[:1])


def test_statistics_of_half_precision_features_are_not_half_precision():
    """In float16 the sum of 4096 numbers around 100 would be infinite."""
    norm = BatchNorm(1, torch.Generator().manual_seed(0))
    x = (100 + normal(16, 1, 16, 16)).half()

    y = norm(x)

    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), norm(x.float()), rtol=2e-3, atol=2e-3)


BATCH = 7
SHARES = {1: [7], 2: [5, 2], 3: [1, 4, 2]}


class MinibatchLoss(nn.Module):
    """D's loss and R1, through G as well, over the images of one worker."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"resolution": 16, "width": 2}
        G = dcgan.Generator(dcgan.GeneratorConfig(**sizes, z_size=6), seed=1)
        D = dcgan.Discriminator(dcgan.DiscriminatorConfig(**sizes), seed=2)
        self.G, self.D = G.double(), D.double()

    def forward(self, z: Tensor, reals: Tensor) -> Tensor:
        reals = reals.requires_grad_()
        real_logits, fake_logits = self.D(reals), self.D(self.G(z))
        penalty = gradient_penalty(real_logits, reals, gamma=10)
        return (d_logistic(real_logits, fake_logits) + penalty).sum()


def results_of_rank(world: int, rank: int) -> dict[str, Tensor]:
    """Gradients and running statistics of the whole minibatch, as this worker has them."""
    start = sum(SHARES[world][:rank])
    share = slice(start, start + SHARES[world][rank])
    z, reals = (
        normal(BATCH, *shape, seed=seed, dtype=torch.float64)[share]
        for seed, shape in enumerate([(6,), (3, 16, 16)])
    )
    module = loss = MinibatchLoss()
    if world > 1:
        module = DistributedDataParallel(loss, broadcast_buffers=False)
    for _ in range(2):  # DDP rebuilds its buckets after the first backward
        loss.zero_grad()
        (module(z, reals) * (world / BATCH)).backward()
    gradients = {f"gradient of {name}": p.grad for name, p in loss.named_parameters()}
    return gradients | dict(loss.named_buffers())


def _save_results(rank: int, ports: list[int], folder: Path) -> None:
    for world, port in zip((2, 3), ports, strict=True):
        if rank < world:
            with ProcessGroup(rank, world, port):
                torch.save(results_of_rank(world, rank), folder / f"{world}-{rank}.pt")


def test_any_number_of_workers_with_unequal_shares_normalizes_as_one(tmp_path):
    """Gradients through the statistics, and R1's gradients of those, to 1e-12."""
    expected = results_of_rank(1, 0)
    run_ranks(_save_results, 3, [free_port(), free_port()], tmp_path)
    for world, shares in list(SHARES.items())[1:]:
        for rank in range(len(shares)):
            actual = torch.load(tmp_path / f"{world}-{rank}.pt")
            assert actual.keys() == expected.keys()
            for name, value in expected.items():
                limit = 1e-12 * float(value.abs().max())
                worst = float((actual[name] - value).abs().max())
                assert worst <= limit, f"{name} of worker {rank} of {world} is off by {worst:.1e}"
