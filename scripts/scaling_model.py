"""The tables of docs/scaling.md that are a model: LLaDA-8B on 8 to 1,024 ranks. Run: python scripts/scaling_model.py

Everything that isn't arithmetic is a constant below, with where it comes from."""

# LLaDA-8B: width 4,096, 32 layers, MLP 12,288, vocabulary 126,464, head not tied.
WIDTH, LAYERS, MLP, VOCAB = 4096, 32, 12288, 126464
FULL = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * MLP + 2 * WIDTH) + 2 * VOCAB * WIDTH + WIDTH
ROUNDED = FULL - VOCAB * WIDTH - (2 * LAYERS + 1) * WIDTH  # what products alone read: in bf16 at every rank
LORA = LAYERS * 3 * 128 * 2 * WIDTH  # rank 128 on q, k, v
TOKENS, ANSWER = 512, 384  # of a rank in a step
# Measured: docs/performance.md, a WeFT step of LoRA of 512 tokens in bf16 on 2 cores.
LORA_SECONDS = 83.0
# Derived: every weight's step takes 3.51 / 2.53 times LoRA's in the same document, at shape P.
FULL_SECONDS = LORA_SECONDS * 3.51 / 2.53
# The part of a step that is backward, during which gradients travel: 34.4 of 83 s.
BACKWARD = 34.4 / 83
# Line rates: 10 and 100 Gb/s Ethernet, HDR InfiniBand (200 Gb/s). Assumed: 80 % of it, and seconds a message.
WIRES = {"10 Gb/s Ethernet": (1.25e9, 30e-6), "100 Gb/s Ethernet": (12.5e9, 30e-6), "HDR InfiniBand": (25e9, 3e-6)}
REACHED = 0.8
MESSAGE = 1 << 24  # numbers, of all ranks' parts: src/train/shards.rs
CHUNK = 1 << 14  # numbers of a sum of squares


def seconds(numbers, ranks, wire, rounded=0):
    """One way of all numbers: the bytes, and a message to each other rank in every round."""
    rate, latency = WIRES[wire]
    rounds = -(-numbers // MESSAGE)
    bytes_of_all = 4 * numbers - 2 * rounded
    return bytes_of_all * (ranks - 1) / ranks / (REACHED * rate) + rounds * (ranks - 1) * latency


def told_seconds(numbers, ranks, wire):
    rate, latency = WIRES[wire]
    bytes_of_all = ranks * (64 + 8 * ANSWER + 8) + 8 * numbers / CHUNK
    return bytes_of_all / (REACHED * rate) + 3 * (ranks - 1) * latency


def efficiency(numbers, compute, ranks, wire, overlaps):
    there = seconds(numbers, ranks, wire)
    if overlaps:  # all but the last bucket, the embedding's
        last = seconds(VOCAB * WIDTH, ranks, wire)
        there = last + max(0.0, there - last - BACKWARD * compute)
    back = seconds(numbers, ranks, wire, ROUNDED if overlaps else 0)
    return compute / (compute + there + back + told_seconds(numbers, ranks, wire))


def table(compute_of):
    columns = [(kind, wire) for kind in compute_of for wire in WIRES]
    print("| ranks | " + " | ".join(f"{kind}, {wire}" for kind, wire in columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for ranks in [8, 16, 32, 64, 128, 256, 512, 1024]:
        cells = []
        for kind, wire in columns:
            numbers, compute = (LORA if kind == "LoRA" else FULL), compute_of[kind]
            cells.append(f"{100 * efficiency(numbers, compute, ranks, wire, kind == 'full'):.1f} %")
        print(f"| {ranks:,} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    print(f"LoRA trains {LORA:,} numbers, full {FULL:,}\n")
    print("A rank as fast as the 2 cores that were measured:\n")
    table({"LoRA": LORA_SECONDS, "full": FULL_SECONDS})
    print("\nA rank that is a hundred times as fast:\n")
    table({"LoRA": LORA_SECONDS / 100, "full": FULL_SECONDS / 100})
    print("\nMemory of a rank, full, bf16, GB (weights, gradients, moments):\n")
    for ranks in [1, 2, 4, 8, 64, 1024]:
        weights = FULL if ranks == 1 else FULL - ROUNDED / 2 + ROUNDED / ranks
        parts = [4e-9 * weights, 4e-9 * FULL, 8e-9 * FULL / ranks]
        print(f"| {ranks:,} | " + " | ".join(f"{part:.1f}" for part in parts) + f" | {sum(parts):.1f} |")
