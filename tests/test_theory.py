"""What adversarial training is known to do, in cases small enough for a closed form.

Goodfellow et al. 2014 (Sections 4.1 and 4.2), Mescheder et al. 2018 (Sections 2 and 4).
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stylegan.draws import D_STEP, G_STEP, Draws, Purpose
from stylegan.losses import (
    d_hinge,
    d_logistic,
    d_wgan,
    g_logistic,
    g_logistic_ns,
    g_wgan,
    gradient_penalty,
)
from stylegan.networks import gan
from stylegan.optimizer import Adam, OptimizerConfig

P = [0.5, 0.25, 0.125, 0.0625, 0.0625]
Q = [0.125, 0.25, 0.5, 0.0625, 0.0625]


def symbols(distribution: list[float]) -> Tensor:
    """16 symbols that occur exactly as often as the distribution says."""
    counts = torch.tensor([round(16 * share) for share in distribution])
    return torch.arange(len(distribution)).repeat_interleave(counts)


def best_D(
    loss: Callable[[Tensor, Tensor], Tensor], p: list[float], q: list[float], *, lr: float = 4.0
) -> tuple[Tensor, float]:
    """Logit of each symbol once D is trained to the end, and its loss there."""
    table = torch.zeros(len(p), dtype=torch.float64, requires_grad=True)

    def mean_loss() -> Tensor:
        real_logits, fake_logits = table[symbols(p)][:, None], table[symbols(q)][:, None]
        return loss(real_logits, fake_logits).mean()

    for _ in range(200):
        (gradient,) = torch.autograd.grad(mean_loss(), table)
        table.data -= lr * gradient
    return table.detach(), mean_loss().item()


def test_the_best_discriminator_is_the_share_of_the_reals():
    """D*(x) = p(x) / (p(x) + q(x)) (Proposition 1)."""
    logits, _ = best_D(d_logistic, P, Q)
    p, q = torch.tensor(P, dtype=torch.float64), torch.tensor(Q, dtype=torch.float64)

    torch.testing.assert_close(torch.sigmoid(logits), p / (p + q), rtol=1e-9, atol=0)


def test_its_value_is_the_jensen_shannon_divergence():
    """C(G) = -log 4 + 2 JSD(p || q) (Eq. 6)."""
    _, loss = best_D(d_logistic, P, Q)
    middle = [(a + b) / 2 for a, b in zip(P, Q, strict=True)]
    jsd = sum(
        a * math.log(a / m) / 2 + b * math.log(b / m) / 2
        for a, b, m in zip(P, Q, middle, strict=True)
    )

    assert -loss == pytest.approx(-math.log(4) + 2 * jsd, rel=1e-9)


def test_where_the_fakes_are_like_the_reals_the_value_is_minus_log_4():
    """The least that G can reach, with D = 1/2 everywhere (Theorem 1)."""
    logits, loss = best_D(d_logistic, P, P)
    fake_logits = logits[symbols(P)][:, None]

    assert -loss == pytest.approx(-math.log(4), rel=1e-12)
    assert torch.equal(torch.sigmoid(logits), torch.full_like(logits, 0.5))
    assert float(g_logistic(fake_logits).mean()) == pytest.approx(-math.log(2))
    assert float(g_logistic_ns(fake_logits).mean()) == pytest.approx(math.log(2))


def test_the_best_hinge_discriminator_is_the_sign_and_its_value_the_total_variation():
    """Its loss is 2 - sum |p - q| (Lim & Ye 2017)."""
    logits, loss = best_D(d_hinge, P, Q, lr=0.05)
    p, q = torch.tensor(P), torch.tensor(Q)

    assert torch.equal(logits.sign()[p != q], (p - q).sign()[p != q].double())
    assert loss == pytest.approx(2 - float((p - q).abs().sum()), abs=0.05)


# The game min_x max_y x y: D(u) = y u, one real at 0, G's only image at x.


def wgan_gradients(x: Tensor, y: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Of G's loss for x, and of D's loss with R1 for y."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    reals = torch.zeros(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    real_logits, fake_logits = (y * reals).flatten(1), (y * x).reshape(1, 1)
    D_loss = d_wgan(real_logits, fake_logits)
    if gamma:
        D_loss = D_loss + gradient_penalty(real_logits, reals, gamma)
    (y_gradient,) = torch.autograd.grad(D_loss.sum(), y, retain_graph=True)
    (x_gradient,) = torch.autograd.grad(g_wgan(fake_logits).sum(), x)
    return x_gradient, y_gradient


def play(*, lr: float, steps: int, alternating: bool, gamma: float = 0.0) -> Tensor:
    """The places (x, y) of a game from (1, 0) on [steps + 1, 2]."""
    x, y = torch.tensor([1.0, 0.0], dtype=torch.float64)
    places = [torch.stack([x, y])]
    for _ in range(steps):
        x_gradient, y_gradient = wgan_gradients(x, y, gamma)
        y = y - lr * y_gradient
        if alternating:
            x_gradient, _ = wgan_gradients(x, y, gamma)
        x = x - lr * x_gradient
        places.append(torch.stack([x, y]))
    return torch.stack(places)


def test_simultaneous_descent_spirals_outward():
    """Each step turns by atan(lr) and stretches by sqrt(1 + lr^2)."""
    lr, steps = 0.1, 200
    places = play(lr=lr, steps=steps, alternating=False)

    number = torch.arange(steps + 1, dtype=torch.float64)
    radius, angle = (1 + lr**2) ** (number / 2), number * math.atan(lr)
    expected = torch.stack([radius * angle.cos(), -radius * angle.sin()], dim=1)
    torch.testing.assert_close(places, expected, rtol=1e-10, atol=1e-10)
    assert float(places[-1].norm()) > 2.7


def test_alternating_descent_goes_round_on_an_ellipse():
    """x^2 + y^2 - lr x y never changes, so that it neither diverges nor converges."""
    lr = 0.1
    places = play(lr=lr, steps=1000, alternating=True)

    x, y = places.T
    invariant = x**2 + y**2 - lr * x * y
    torch.testing.assert_close(invariant, torch.ones_like(x), rtol=1e-10, atol=0)
    assert float(places.norm(dim=1).max()) < 1 / math.sqrt(1 - lr / 2) + 1e-9
    assert float(places[-100:].norm(dim=1).min()) > 1 / math.sqrt(1 + lr / 2) - 1e-9


def test_r1_makes_simultaneous_descent_converge():
    """The step is the matrix [[1, lr], [-lr, 1 - lr gamma]], with eigenvalues inside the circle."""
    lr, gamma, steps = 0.1, 1.0, 200
    places = play(lr=lr, steps=steps, alternating=False, gamma=gamma)

    step = torch.tensor([[1, lr], [-lr, 1 - lr * gamma]], dtype=torch.float64)
    expected = torch.linalg.matrix_power(step, steps)[:, 0]
    torch.testing.assert_close(places[-1], expected, rtol=1e-9, atol=1e-12)
    largest = float(torch.linalg.eigvals(step).abs().max())
    assert largest == pytest.approx(math.sqrt(1 - lr * gamma + lr**2))
    assert float(places[-1].norm()) < 2 * largest**steps < 1e-3


# Eight Gaussians on a ring, the classic case of modes that G may drop.

STD = 0.05
ANGLES = torch.arange(8) * (math.pi / 4)
CENTRES = 0.7 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
DRAWS = Draws(seed=0)


def latents(step: int, count: int) -> Tensor:
    return DRAWS.normal(Purpose.Z, step=step, indices=torch.arange(count), count=4)


def ring(count: int) -> Tensor:
    """Images of one pixel with two channels, as many of each mode."""
    indices = torch.arange(count)
    offsets = DRAWS.normal(Purpose.NOISE, indices=indices, count=2)
    return (CENTRES[indices % 8] + STD * offsets)[:, :, None, None]


def shares_of_modes(images: Tensor) -> tuple[Tensor, float]:
    """Share of each mode among the images within 3 std of one, and how many are."""
    distances, modes = torch.cdist(images.flatten(1), CENTRES).min(dim=1)
    near = distances < 3 * STD
    return torch.bincount(modes[near], minlength=8) / near.sum(), near.double().mean().item()


def test_non_saturating_loss_and_r1_cover_all_modes_of_a_ring():
    sizes = {"resolution": 1, "channels": 2, "initial_range": 0.2}
    no_dropout = {"input_dropout": 0, "dropout": 0}
    G = gan.Generator(gan.GeneratorConfig(**sizes, z_size=4, widths=(64, 64)), seed=0)
    D_config = gan.DiscriminatorConfig(**sizes, **no_dropout, widths=(32, 32), pieces=3)
    D = gan.Discriminator(D_config, seed=1)
    G_opt, D_opt = (Adam(dict(net.named_parameters()), OptimizerConfig()) for net in (G, D))
    steps, batch = 1000, 64
    images = steps * batch
    drawn = (ring(images), latents(D_STEP, images), latents(G_STEP, images))
    for step, (reals, D_z, G_z) in enumerate(zip(*(x.split(batch) for x in drawn), strict=True)):
        lr = 0.004 * (1 - step / steps)
        real_logits, fake_logits = D(reals.requires_grad_()), D(G(D_z).detach())
        D_loss = d_logistic(real_logits, fake_logits)
        (D_loss + gradient_penalty(real_logits, reals, gamma=0.1)).mean().backward()
        D_opt.step(lr)
        D_opt.zero_grad()

        g_logistic_ns(D(G(G_z))).mean().backward()
        G_opt.step(lr)
        G_opt.zero_grad()
        D_opt.zero_grad()

    with torch.no_grad():
        fakes = G(DRAWS.normal(Purpose.EVAL_Z, indices=torch.arange(2000), count=4))
        shares, near = shares_of_modes(fakes)
        logits = D(ring(2000)), D(fakes)
    assert near > 0.6
    assert float(shares.min()) > 0.5 / 8
    assert float(shares.max()) < 2 / 8
    # Close to Theorem 1's end.
    assert d_logistic(*logits).mean().item() == pytest.approx(math.log(4), abs=0.05)
