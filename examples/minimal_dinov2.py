# SPDX-License-Identifier: Apache-2.0
"""DINOv2 on one page: the whole method in plain PyTorch, to be read from top to bottom.

A student network sees masked and small crops of an image; a teacher, its own moving average, sees whole views.
The student learns to say of each image, and of each hidden patch, what the teacher says (Oquab et al. 2023).

    python examples/minimal_dinov2.py                  a few seconds on a CPU

Left out for room: stochastic depth, registers, most augmentations, half precision, several processes.
`opendino` has them, and its tests hold it to this page: same weights in, same losses, gradients and updates out.
"""

import math
import random

import torch
from torch import nn
from torch.nn import functional as F

IMAGE, LOCAL, PATCH, LOCALS = 32, 16, 4, 4  # pixels of a global crop, a local crop, a patch; local crops of an image
DIM, DEPTH, HEADS, PROTOTYPES, HIDDEN, BOTTLENECK = 64, 3, 2, 128, 128, 64
STEPS, BATCH, WARMUP, FREEZE, PEAK_LR, MIN_LR = 40, 16, 5, 2, 2e-3, 1e-6


# --- The backbone: a vision transformer, with the official parameter names.
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM, eps=1e-6), nn.LayerNorm(DIM, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(DIM, 3 * DIM), "proj": nn.Linear(DIM, DIM)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(DIM, 4 * DIM), "fc2": nn.Linear(4 * DIM, DIM)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": nn.Parameter(torch.full((DIM,), 0.1))}) for _ in range(2))

    def forward(self, x):  # [B, T, D]
        B, T, _ = x.shape
        q, k, v = self.attn["qkv"](self.norm1(x)).view(B, T, 3, HEADS, -1).permute(2, 0, 3, 1, 4)  # [B, A, T, D / A]
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, DIM)
        x = x + self.ls1["gamma"] * self.attn["proj"](attended)
        return x + self.ls2["gamma"] * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM) * 1e-6)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (IMAGE // PATCH) ** 2, DIM) * 0.02)
        self.mask_token = nn.Parameter(torch.zeros(1, DIM))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, DIM, PATCH, PATCH)})
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(DIM, eps=1e-6)

    def forward(self, images, masks=None):
        """[B, 3, H, W] -> class tokens [B, D] and patch tokens [B, N, D]; masked patches are hidden."""
        x = self.patch_embed["proj"](images)
        (h, w), x = x.shape[-2:], x.flatten(2).transpose(1, 2)  # [B, N, D]
        if masks is not None:
            x = torch.where(masks.unsqueeze(-1), self.mask_token, x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.positions(h, w)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 0], x[:, 1:]

    def positions(self, h, w):
        """The position table, resized for crops of another size as the published models do it."""
        side = IMAGE // PATCH
        if h == w == side:
            return self.pos_embed
        table = self.pos_embed[:, 1:].view(1, side, side, DIM).permute(0, 3, 1, 2)
        table = F.interpolate(table, scale_factor=((h + 0.1) / side, (w + 0.1) / side), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], dim=1)


# --- The head: tokens to logits over prototypes, each logit a cosine times the prototype's magnitude.
class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(DIM, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, BOTTLENECK)
        )
        directions = (torch.rand(PROTOTYPES, BOTTLENECK) * 2 - 1) / math.sqrt(BOTTLENECK)
        self.last_layer = nn.ParameterDict({"weight_g": torch.ones(PROTOTYPES, 1), "weight_v": directions})

    def forward(self, x):
        prototypes = self.last_layer["weight_g"] * F.normalize(self.last_layer["weight_v"], dim=1)
        return F.normalize(self.mlp(x), dim=-1) @ prototypes.T


def build_network(separate_head):
    """A backbone and its heads: one for both tasks, or one each."""
    heads = {"dino_head": Head(), "ibot_head": Head()} if separate_head else {"dino_head": Head()}
    network = nn.ModuleDict({"backbone": Backbone(), **heads})
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return network


# --- Targets: the teacher's logits as probabilities, kept from collapse in one of two ways.
def centered_softmax(logits, temp, center):
    """Sharpen, after taking off the running mean of the batches before; then move that mean, in place."""
    targets = torch.softmax((logits - center) / temp, dim=-1)
    if len(logits):
        center.lerp_(logits.mean(dim=0), 0.1)
    return targets


def sinkhorn_knopp(logits, temp):
    """Scale columns and rows in turn, so that all prototypes are used alike and each row sums to one."""
    scaled = torch.exp((logits - logits.max()) / temp) if len(logits) else logits
    for _ in range(3):
        scaled = scaled / scaled.sum(dim=0, keepdim=True)
        scaled = scaled / scaled.sum(dim=1, keepdim=True)
    return scaled


# --- The objective: four terms, whose sum is back-propagated.
def cross_entropy(logits, targets):
    return -(targets * torch.log_softmax(logits / 0.1, dim=-1)).sum(dim=-1)


def koleo(features):
    """Minus the mean log distance to the nearest neighbour: spreads the features of a batch."""
    x = F.normalize(features, dim=-1)
    nearest = (x @ x.T).fill_diagonal_(-1).argmax(dim=1)
    return -torch.log(F.pairwise_distance(x, x[nearest], eps=1e-8) + 1e-8).mean()


def loss_terms(student, teacher, centers, batch, temp):
    """The weighted terms for (2 global crops [B, 3, H, W], L local crops, masks [2B, N]); no `centers`: Sinkhorn."""
    globals_, locals_, masks = batch
    ibot_head = "ibot_head" if "ibot_head" in student else "dino_head"

    def targets(name, logits):
        return centered_softmax(logits, temp, centers[name]) if centers else sinkhorn_knopp(logits, temp)

    with torch.no_grad():  # the teacher sees the global crops whole
        cls, patches = teacher["backbone"](torch.cat(globals_))
        crop_targets = targets("dino", teacher["dino_head"](cls)).chunk(2)
        patch_targets = targets("ibot", teacher[ibot_head](patches[masks]))
    cls, patches = student["backbone"](torch.cat(globals_), masks)
    crops = [*student["dino_head"](cls).chunk(2), *(student["dino_head"](student["backbone"](c)[0]) for c in locals_)]

    # DINO: each student crop against the teacher's crops of other views; all 2 + 2 L pairs weigh the same.
    pairs = [(s, t) for s in range(len(crops)) for t in range(2) if s != t]
    dino = [(s, cross_entropy(crops[s], crop_targets[t]).mean() / len(pairs)) for s, t in pairs]
    # iBOT: mean over the hidden patches of a crop, summed, over the number of all crops, also those that hide nothing.
    patch_losses = cross_entropy(student[ibot_head](patches[masks]), patch_targets).split(masks.sum(dim=1).tolist())
    return {
        "dino_local": sum((loss for s, loss in dino if s >= 2), torch.tensor(0.0)),
        "dino_global": sum(loss for s, loss in dino if s < 2),
        "ibot": sum((losses.mean() for losses in patch_losses if len(losses)), torch.tensor(0.0)) / len(masks),
        "koleo": 0.1 * sum(koleo(crop) for crop in cls.chunk(2)),
    }


# --- Learning: schedules, groups of parameters, clipping of each network, the teacher's moving average.
def cosine(start, end, step, steps):
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / steps))


def parameter_groups(student):
    """Lower layers learn slower; biases, norms and scales do not decay."""
    for name, parameter in student.named_parameters():
        layer = DEPTH + 1  # the final norm and the heads
        if ".blocks." in name:
            layer = 1 + int(name.split(".")[2])
        elif any(part in name for part in ("token", "pos_embed", "patch_embed")):
            layer = 0
        rate = 0.9 ** (DEPTH + 1 - layer) * (0.2 if "patch_embed" in name else 1.0)
        decay = 0.0 if name.endswith("bias") or "norm" in name or "gamma" in name else 1.0
        yield {"params": [parameter], "rate": rate, "decay": decay, "last": "last_layer" in name}


def train_step(step, student, teacher, centers, optimizer, batch):
    """One iteration; returns the terms of the loss."""
    cooling = cosine(PEAK_LR, MIN_LR, step - WARMUP, STEPS - WARMUP)
    lr = PEAK_LR * step / (WARMUP - 1) if step < WARMUP else cooling
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group["last"] and step < FREEZE else lr * group["rate"]
        group["weight_decay"] = cosine(0.04, 0.4, step, STEPS) * group["decay"]
    terms = loss_terms(student, teacher, centers, batch, 0.04 + 0.03 * min(step / (0.3 * STEPS - 1), 1))
    optimizer.zero_grad()
    sum(terms.values()).backward()
    for network in student.values():
        nn.utils.clip_grad_norm_(network.parameters(), 3.0)
    optimizer.step()
    with torch.no_grad():
        for average, current in zip(teacher.parameters(), student.parameters(), strict=True):
            average.lerp_(current, 1 - cosine(0.992, 1.0, step, STEPS))
    return {name: term.item() for name, term in terms.items()}


# --- Data: discs of random colour, place and size; random resized crops; block masks.
def draw_images(count, side=48):
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    images = torch.randn(count, 3, 1, 1) + 0.1 * torch.randn(count, 3, side, side)
    for image in images:
        disc = (rows - random.uniform(10, 38)) ** 2 + (columns - random.uniform(10, 38)) ** 2 < random.uniform(
            5, 14
        ) ** 2
        image[:, disc] += torch.randn(3, 1)
    return images


def random_crop(image, size, low, high):
    """A square of a random share (low to high) of the image's area, resized, flipped half of the time."""
    side = int(image.shape[-1] * math.sqrt(random.uniform(low, high)))
    top, left = (random.randint(0, image.shape[-1] - side) for _ in range(2))
    crop = image[None, :, top : top + side, left : left + side]
    crop = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)[0]
    return crop.flip(-1) if random.random() < 0.5 else crop


def block_mask(target, side=IMAGE // PATCH):
    """Random rectangles while they fit into `target` hidden patches."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    for _ in range(100):
        area, ratio = random.uniform(1, max(target, 1)), math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = (min(max(round(math.sqrt(area * r)), 1), side - 1) for r in (ratio, 1 / ratio))
        top, left, tried = random.randint(0, side - h), random.randint(0, side - w), mask.clone()
        tried[top : top + h, left : left + w] = True
        mask = tried if tried.sum() <= target else mask
    return mask.flatten()


def make_batch():
    images = draw_images(BATCH)
    shares = [0.1 + 0.4 * (row + random.random()) / BATCH for row in range(BATCH)] + [0.0] * BATCH  # half hide nothing
    random.shuffle(shares)
    globals_ = [torch.stack([random_crop(image, IMAGE, 0.32, 1.0) for image in images]) for _ in range(2)]
    locals_ = [torch.stack([random_crop(image, LOCAL, 0.05, 0.32) for image in images]) for _ in range(LOCALS)]
    return globals_, locals_, torch.stack([block_mask(int(share * (IMAGE // PATCH) ** 2)) for share in shares])


def main(separate_head=False, sinkhorn=True, seed=0):
    random.seed(seed)
    torch.manual_seed(seed)
    student, teacher = build_network(separate_head), build_network(separate_head)
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    centers = None if sinkhorn else {"dino": torch.zeros(PROTOTYPES), "ibot": torch.zeros(PROTOTYPES)}
    optimizer = torch.optim.AdamW(parameter_groups(student))
    for step in range(STEPS):
        terms = train_step(step, student, teacher, centers, optimizer, make_batch())
        shown = "  ".join(f"{name} {term:.4f}" for name, term in terms.items())
        print(f"step {step:2d}  loss {sum(terms.values()):.4f}  {shown}")


if __name__ == "__main__":
    main()
