"""Journey-TRAK by hand: which training images guided each step of a diffusion model's sampling, and is it true?

What `journey` does, on a page and without it. Given the same settings, both find the same numbers (tests/test_by_hand.py).

    command   OMP_NUM_THREADS=1 python experiments/by_hand.py
    cost      112 s of one core, 1.2 GB
    result    LDS × 100 at t = 500, 300, 100: 18 [−8, 44], 25 [4, 47], 27 [9, 43] (95%, over queries and halves);
              with seed=1, other images, models and noise: 13 [−12, 38], 29 [1, 54], 16 [−3, 33]

N training images, Q queries, K draws (t, ε), M halves of the data, p parameters θ; ε_θ(x_t, t) is the noise that the network
predicts, x̂0_t the image it has in mind at t, f its loss, φ = ∇_θ f; τ_i > 0: without training image i the query's loss is higher.
"""

import math
from hashlib import sha256

import numpy as np
import torch
from diffusers import UNet2DModel
from scipy.stats import spearmanr
from sklearn.datasets import load_digits

T = 1000
alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, T, dtype=torch.float64), 0).view(
    T, 1, 1, 1
)  # Ho et al. 2020, Section 4
signal, noise = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()  # √ᾱ_t and √(1 − ᾱ_t)


def main(
    N=100,
    Q=16,
    K=64,
    M=32,
    steps=(500, 300, 100),
    inference_steps=50,
    damping=1.0,
    seed=0,
    **training,
):
    """steps: the timesteps that are attributed; damping: λ over ‖Φ‖²/N (N < p); training: as `train` takes it."""
    # Data: handwritten digits, as many of each.
    raw = load_digits()
    rank = np.empty(len(raw.target), int)  # of an image among those of its digit
    for digit in range(10):
        members = np.flatnonzero(raw.target == digit)
        rank[members] = np.random.default_rng(entropy(seed, "split", digit)).permutation(
            len(members)
        )
    chosen = np.sort(np.lexsort((raw.target, rank))[:N])
    labels, grey = (
        raw.target[chosen],
        np.rint(raw.images[chosen, None] * 255 / 16),
    )  # [N], [N, 1, 8, 8]
    images = torch.from_numpy(grey).float() / 127.5 - 1

    # Train, and sample the queries, keeping x̂0_t on the way.
    net = train(images, seed, **training)
    x_t = torch.stack(
        [torch.randn(1, 8, 8, generator=generator(seed, "journey", q)) for q in range(Q)]
    )
    stride, x0_hat = T // inference_steps, {}
    for t in range(stride * (inference_steps - 1), min(steps) - 1, -stride):
        eps = net(x_t, t).sample.detach()
        x0_hat[t] = ((x_t - noise[t] * eps) / signal[t]).clamp(-1, 1)  # Ho et al. 2020, Equation 15
        x_t = (
            signal[t - stride] * x0_hat[t] + noise[t - stride] * eps
        )  # Song et al. 2021, Equation 12 with σ = 0

    # Attribute: training images are asked at all t, one t from each of K equal parts, and queries at their own t (Georgiev et al.
    # 2023, Section 3). τ = φ_qᵀ (ΦᵀΦ + λI)⁻¹ φ_i (Park et al. 2023, Equation 13), where (ΦᵀΦ + λI)⁻¹ Φᵀ = Φᵀ (ΦΦᵀ + λI)⁻¹.
    random = generator(seed, "attribute", "timesteps", T, K)
    everywhere = [
        int(torch.randint(k * T // K, (k + 1) * T // K, (), generator=random)) for k in range(K)
    ]
    phi = gradients(net, images, *draws(everywhere, "attribute", seed))  # [N, p]
    kernel = phi @ phi.T + damping * phi.square().sum() / N * torch.eye(N)  # [N, N]
    tau = []
    for t in steps:
        phi_q = gradients(net, x0_hat[t], *draws([t] * K, "attribute queries", seed))  # [Q, p]
        tau.append(torch.linalg.solve(kernel, phi @ phi_q.T).T.numpy())  # [Q, N]

    # Retrain on halves of each digit, and measure what became of every query's output.
    masks, measured = np.zeros((M, N), bool), np.empty((len(steps), Q, M))
    for m in range(M):
        random = np.random.default_rng(entropy(seed, "subset", m))
        for digit in range(10):
            members = random.permutation(np.flatnonzero(labels == digit))
            masks[m, members[: round(len(members) / 2)]] = True
        retrained = train(images[torch.from_numpy(masks[m])], seed, **training)
        for i, t in enumerate(steps):  # with draws of each query's own, others than attribution had
            of_query = [
                (x0, draws([t] * K, f"measure {q}", seed)) for q, x0 in enumerate(x0_hat[t])
            ]
            measured[i, :, m] = [f(retrained, x0, *its_draws).item() for x0, its_draws in of_query]

    # Judge: of a model trained on S, the output −Σ_{i∈S} τ_i + const is predicted. The linear datamodeling score (LDS) of a query
    # is the rank correlation, over halves, of what is predicted and measured (Park et al. 2023, Section 2).
    predicted, lds = -np.stack(tau) @ masks.T, np.empty((len(steps), Q))
    for i, t in enumerate(steps):
        lds[i] = [spearmanr(predicted[i, q], measured[i, q]).statistic for q in range(Q)]
        print(f"t={t}: LDS × 100 = {100 * lds[i].mean():.0f}, mean of {Q} queries over {M} halves")
    return {
        "net": net,
        "x0_hat": x0_hat,
        "tau": tau,
        "masks": masks,
        "measured": measured,
        "lds": lds,
    }


def f(net, x0, t, eps):
    """‖ε − ε_θ(√ᾱ_t x_0 + √(1 − ᾱ_t) ε, t)‖² (Ho et al. 2020, Equation 14), mean over pixels and a batch of images or draws."""
    return (eps - net(signal[t] * x0 + noise[t] * eps, t).sample).square().mean()


def gradients(net, images, t, eps):
    """∇_θ f(x_0; θ) for each image. [B, p]"""
    of_each = [torch.autograd.grad(f(net, x0, t, eps), list(net.parameters())) for x0 in images]
    return torch.stack(
        [torch.cat([g.flatten() for g in gradient]) for gradient in of_each]
    ).double()


def train(
    images, seed, channels=(16,), num_steps=400, batch_size=32, learning_rate=1e-3, warmup_steps=50
):
    """A U-Net. Its first weights, and the timesteps and noise it meets, are the same for any images."""
    torch.manual_seed(entropy(seed, "initialisation", "repeat 0"))
    blocks = {
        f"{way.lower()}_block_types": [f"{way}Block2D"] * len(channels) for way in ("Down", "Up")
    }
    net = UNet2DModel(
        8,
        1,
        1,
        block_out_channels=channels,
        layers_per_block=1,
        add_attention=False,
        norm_num_groups=8,
        **blocks,
    )
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-4, fused=True)
    epochs = range(math.ceil(num_steps * batch_size / len(images)))
    order = torch.cat(
        [
            torch.randperm(len(images), generator=generator(seed, "epoch", "repeat 0", e))
            for e in epochs
        ]
    )
    for step in range(num_steps):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (num_steps - warmup_steps)))
        optimizer.param_groups[0]["lr"] = learning_rate * (
            (step + 1) / warmup_steps if step < warmup_steps else cosine
        )
        x0 = images[order[step * batch_size : (step + 1) * batch_size]]
        random = generator(seed, "train", "repeat 0", step)
        t, eps = (
            torch.randint(T, (batch_size,), generator=random),
            torch.randn(x0.shape, generator=random),
        )
        optimizer.zero_grad()
        f(net, x0, t, eps).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net


def draws(timesteps, purpose, seed):
    """t [K] and ε [K, 1, 8, 8], the same for all images and models: ε depends on its t, and on how often that came before."""
    eps = [
        torch.randn(1, 8, 8, generator=generator(seed, purpose, t, timesteps[:k].count(t)))
        for k, t in enumerate(timesteps)
    ]
    return torch.tensor(timesteps), torch.stack(eps)


def generator(seed, purpose, *index):
    """For one thing that is drawn, so that nothing depends on what else is."""
    return torch.Generator().manual_seed(entropy(seed, purpose, *index))


def entropy(seed, purpose, *index):
    return int.from_bytes(sha256(repr((seed, purpose, *index)).encode()).digest()[:8]) >> 1


if __name__ == "__main__":
    main()
