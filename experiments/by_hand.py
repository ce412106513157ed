"""Journey-TRAK in one script: attribute each step of a diffusion model's sampling, and evaluate it.

This is what `journey` computes, without the package. With the same settings both give the same
numbers (tests/test_by_hand.py).

    command   OMP_NUM_THREADS=1 python experiments/by_hand.py
    cost      112 s of one core, 1.2 GB
    result    LDS × 100 and 95% intervals, over queries and subsets:
              t         500           300           100
              seed=0    18 [−8, 44]   25 [4, 47]    27 [9, 43]
              seed=1    13 [−12, 38]  29 [1, 54]    16 [−3, 33]

N  training images;  Q  queries;  K  noise samples (t, ε);  M  random 50% subsets;  p  parameters θ
ε_θ(x_t, t)  the noise that the network predicts;  x̂0_t  its estimate of the clean image at t
f  the denoising loss;  φ = ∇_θ f;  τ_i > 0: removing training image i increases the query's loss
"""

import math
from hashlib import sha256

import numpy as np
import torch
from diffusers import UNet2DModel
from scipy.stats import spearmanr
from sklearn.datasets import load_digits

T = 1000
beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)  # Ho et al. 2020, Section 4
alpha_bar = torch.cumprod(1 - beta, 0).view(T, 1, 1, 1)
signal, noise = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()  # √ᾱ_t and √(1 − ᾱ_t)


def main(
    N=100,
    Q=16,
    K=64,
    M=32,
    steps=(500, 300, 100),
    inference_steps=50,
    damping=1,
    seed=0,
    **training,
):
    """Train, attribute, retrain, evaluate; print the LDS of each step and return all arrays.

    Args:
        N: Number of training images.
        Q: Number of queries, which are sampled from the model.
        K: Number of noise samples of each gradient and each measurement.
        M: Number of subsets that models are retrained on.
        steps: The timesteps that are attributed.
        inference_steps: Number of steps of a sampling trajectory.
        damping: λ relative to the mean eigenvalue ‖Φ‖²/N (for N < p).
        seed: Seed of all random numbers.
        **training: Options of `train`.
    """
    # 1. Data: handwritten digits, equally many images of each.
    raw = load_digits()
    rank = np.empty(len(raw.target), int)  # of an image among those of its digit
    for digit in range(10):
        members = np.flatnonzero(raw.target == digit)
        random = np.random.default_rng(entropy(seed, "split", digit))
        rank[members] = random.permutation(len(members))
    rows = np.sort(np.lexsort((raw.target, rank))[:N])
    labels = raw.target[rows]  # [N]
    pixels = np.rint(raw.images[rows, None] * 255 / 16)  # [N, 1, 8, 8]
    images = torch.from_numpy(pixels).float() / 127.5 - 1

    # 2. Train a model, and sample the queries with it. Store x̂0_t on the way.
    net = train(images, seed, **training)
    initial = [torch.randn(1, 8, 8, generator=generator(seed, "journey", q)) for q in range(Q)]
    x_t, x0_hat = torch.stack(initial), {}
    stride = T // inference_steps
    for t in range(stride * (inference_steps - 1), min(steps) - 1, -stride):
        eps = net(x_t, t).sample.detach()
        x0_hat[t] = ((x_t - noise[t] * eps) / signal[t]).clamp(-1, 1)  # Ho et al. 2020, Equation 15
        # Song et al. 2021, Equation 12 with σ = 0
        x_t = signal[t - stride] * x0_hat[t] + noise[t - stride] * eps

    # 3. Attribute: τ = φ_qᵀ (ΦᵀΦ + λI)⁻¹ φ_i (Park et al. 2023, Equation 13), computed by the
    # identity (ΦᵀΦ + λI)⁻¹ Φᵀ = Φᵀ (ΦΦᵀ + λI)⁻¹. The gradients of training images are means over
    # all timesteps, one of each of K equal parts; those of queries are at their own timestep
    # (Georgiev et al. 2023, Section 3).
    random = generator(seed, "attribute", "timesteps", T, K)
    edges = [k * T // K for k in range(K + 1)]
    timesteps = [int(torch.randint(edges[k], edges[k + 1], (), generator=random)) for k in range(K)]
    phi = gradients(net, images, *noise_samples(timesteps, "attribute", seed))  # [N, p]
    kernel = phi @ phi.T + damping * phi.square().sum() / N * torch.eye(N)  # [N, N]
    tau = []
    for t in steps:
        t_eps = noise_samples([t] * K, "attribute queries", seed)
        phi_q = gradients(net, x0_hat[t], *t_eps)  # [Q, p]
        tau.append(torch.linalg.solve(kernel, phi @ phi_q.T).T.numpy())  # [Q, N]

    # 4. Retrain on a random half of the images of each digit, and measure the output of every
    # query. Each query has its own noise samples, which attribution did not use.
    masks, measured = np.zeros((M, N), bool), np.empty((len(steps), Q, M))
    for m in range(M):
        random = np.random.default_rng(entropy(seed, "subset", m))
        for digit in range(10):
            members = random.permutation(np.flatnonzero(labels == digit))
            masks[m, members[: round(len(members) / 2)]] = True
        retrained = train(images[torch.from_numpy(masks[m])], seed, **training)
        for i, t in enumerate(steps):
            for q in range(Q):
                t_eps = noise_samples([t] * K, f"measure {q}", seed)
                measured[i, q, m] = f(retrained, x0_hat[t][q], *t_eps).item()

    # 5. Evaluate: the predicted output of a model trained on S is −Σ_{i∈S} τ_i + const. The linear
    # datamodeling score (LDS) of a query is the rank correlation, over subsets, of predicted and
    # measured outputs (Park et al. 2023, Section 2).
    predicted, lds = -np.stack(tau) @ masks.T, np.empty((len(steps), Q))
    for i, t in enumerate(steps):
        lds[i] = [spearmanr(predicted[i, q], measured[i, q]).statistic for q in range(Q)]
        print(f"t={t}: LDS × 100 = {100 * lds[i].mean():.0f}, mean of {Q} queries over {M} subsets")
    return {
        "net": net,
        "x0_hat": x0_hat,
        "tau": tau,
        "masks": masks,
        "measured": measured,
        "lds": lds,
    }


def f(net, x0, t, eps):
    """Return the mean of (ε − ε_θ(√ᾱ_t x_0 + √(1 − ᾱ_t) ε, t))² (Ho et al. 2020, Equation 14).

    The mean is over pixels and over a batch of noise samples, of images, or of both.
    """
    return (eps - net(signal[t] * x0 + noise[t] * eps, t).sample).square().mean()


def gradients(net, images, t, eps):
    """Return ∇_θ f(x_0; θ) of each of B images. [B, p]"""
    rows = []
    for x0 in images:
        gradient = torch.autograd.grad(f(net, x0, t, eps), list(net.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradient]))
    return torch.stack(rows).double()


def train(
    images, seed, channels=(16,), num_steps=400, batch_size=32, learning_rate=1e-3, warmup_steps=50
):
    """Return a U-Net trained on images.

    Its initial weights, and the timesteps and noise of each step, do not depend on the images.
    """
    torch.manual_seed(entropy(seed, "initialisation", "repeat 0"))
    net = UNet2DModel(
        8,
        1,
        1,
        block_out_channels=channels,
        down_block_types=["DownBlock2D"] * len(channels),
        up_block_types=["UpBlock2D"] * len(channels),
        layers_per_block=1,
        add_attention=False,
        norm_num_groups=8,
    )
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-4, fused=True)
    epochs = []
    for epoch in range(math.ceil(num_steps * batch_size / len(images))):
        random = generator(seed, "epoch", "repeat 0", epoch)
        epochs.append(torch.randperm(len(images), generator=random))
    order = torch.cat(epochs)
    for step in range(num_steps):
        # The learning rate: a linear warm-up, then half a cosine.
        if step < warmup_steps:
            scale = (step + 1) / warmup_steps
        else:
            progress = (step - warmup_steps) / (num_steps - warmup_steps)
            scale = 0.5 * (1 + math.cos(math.pi * progress))
        optimizer.param_groups[0]["lr"] = learning_rate * scale
        # A mini-batch, and a step on its loss.
        x0 = images[order[step * batch_size : (step + 1) * batch_size]]
        random = generator(seed, "train", "repeat 0", step)
        t = torch.randint(T, (batch_size,), generator=random)
        eps = torch.randn(x0.shape, generator=random)
        optimizer.zero_grad()
        f(net, x0, t, eps).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net


def noise_samples(timesteps, purpose, seed):
    """Return t [K] and ε [K, 1, 8, 8], the same for all images and models.

    ε depends on t and on how often the same t occurs before it.
    """
    eps = []
    for k, t in enumerate(timesteps):
        random = generator(seed, purpose, t, timesteps[:k].count(t))
        eps.append(torch.randn(1, 8, 8, generator=random))
    return torch.tensor(timesteps), torch.stack(eps)


def generator(seed, purpose, *index):
    """Return the random generator of one purpose, so that no random number depends on others."""
    return torch.Generator().manual_seed(entropy(seed, purpose, *index))


def entropy(seed, purpose, *index):
    """Return the seed of one purpose, a hash of the arguments."""
    return int.from_bytes(sha256(repr((seed, purpose, *index)).encode()).digest()[:8]) >> 1


if __name__ == "__main__":
    main()
