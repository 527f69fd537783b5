"""A reader of the cache format that knows docs/format.md only: zarr and NumPy, nothing of this project."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zarr


def read_cache(path: Path) -> dict[str, Any]:
    """Every array of a cache, decoded, and the distributions at each node and between; ValueError where unsound."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(path, mode="r")
        manifest = dict(group.attrs)
        check(path, manifest)
        stored = {name: group[name][:] for name in names(manifest)}
    width = manifest["teacher"]["hidden_size"]
    found = {name: stored[name] for name in ("tokens", "document_start", "loss_mask")}
    if manifest["targets"]["mode"] == "sparse":
        if manifest["format_version"] > 1:
            unpack(manifest, stored)
        found |= {name: stored[f"logits/{name}"] for name in ("ids", "log_mass")}
        found["values"] = stored["logits/values"].astype(np.float32)
    else:
        found["final_hidden"] = states(stored, "exact/hidden", manifest["targets"]["exact_hidden"], width)
    if manifest["hidden"]["mean"] != "none":
        found |= averaged(manifest, stored, width)
    return {"manifest": manifest, **found}


def names(manifest: dict[str, Any]) -> list[str]:
    """The arrays, which are the listed objects that lie in no group of their own."""
    keys = [key.removesuffix("/zarr.json") for key in manifest["files"] if key.endswith("/zarr.json")]
    return [key for key in keys if key not in ("logits", "exact", "hidden")]


def check(path: Path, manifest: dict[str, Any]) -> None:
    """Fingerprint, listed objects, commit records and their objects."""
    content = {key: value for key, value in manifest.items() if key != "fingerprint"}
    same = hashlib.sha256(canonical(content)).hexdigest() == manifest["fingerprint"]
    digests = dict(manifest["files"])
    rows = manifest["rows"]
    for shard in range(-(-rows["count"] // rows["rows_per_shard"])):
        record = json.loads((path / f"commits/{shard:05d}.json").read_bytes())
        same &= record.pop("digest") == xxhash.xxh3_128_hexdigest(canonical(record))
        digests |= {key: stored["xxh3_128"] for key, stored in record["objects"].items()}
    if not same or any(xxhash.xxh3_128_hexdigest((path / key).read_bytes()) != found for key, found in digests.items()):
        raise ValueError(f"{path} is not what was written")


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def unpack(manifest: dict[str, Any], stored: dict[str, Any]) -> None:
    """Version 2: each position's entries and log-mass from those of its chunk, as version 1 stores them."""
    together, values, numbers = (stored[f"logits/{name}"] for name in ("ids", "values", "position"))
    stored["logits/ids"], stored["logits/values"] = np.zeros_like(together), np.full_like(values, -np.inf)
    stored["logits/log_mass"] = np.zeros((*numbers.shape[:2], numbers.shape[2] - 1), np.float32)
    for first in range(0, len(numbers), manifest["rows"]["rows_per_chunk"]):
        chunk = slice(first, first + manifest["rows"]["rows_per_chunk"])
        rows, length, width = numbers[chunk].shape
        counts, *steps = numbers[chunk].reshape(width, rows * length)
        entry = 0
        for position, count in enumerate(counts):
            place = (first + position // length, position % length)
            for name, array in (("ids", together), ("values", values)):
                stored[f"logits/{name}"][place][:count] = array[chunk].reshape(-1)[entry : entry + count]
            entry += count
            stored["logits/values"][place] *= count > 0
            differences = np.cumsum([step[position] for step in steps[1:]])
            log_mass = steps[0][position] + np.concatenate([[0], np.cumsum(differences)])
            stored["logits/log_mass"][place] = log_mass * manifest["targets"].get("log_mass_step", 2**-13)


def averaged(manifest: dict[str, Any], stored: dict[str, Any], width: int) -> dict[str, Any]:
    """Averaged states, their positions and, where they are drawn, their channels."""
    hidden, seed, drawing = manifest["hidden"], manifest["targets"]["seed"], manifest["hidden"].get("channels")
    rows, kept = stored["hidden/mean"].shape[:2]
    width = drawing["drawn"] if drawing else width
    second = manifest["format_version"] > 1
    offsets = np.full((rows, kept, width), np.float32(0.5))
    positions, sets = np.tile(hidden["stride"] * np.arange(kept), (rows, 1)), np.zeros((rows, kept), int)
    for row in range(rows if second else 0):
        raw = np.random.Philox(key=[seed, row], counter=[0, 0, 0, 3]).random_raw(2 + kept // 8)
        positions[row] += int(raw[0] % np.uint64(hidden["stride"]))
        sets[row] = raw[1:].astype("<u8").view(np.uint8)[:kept]
        if hidden["mean"] != "lossless":
            offsets[row] = uniforms(seed, row, kept * width).reshape(kept, width)
    values = states(stored, "hidden/mean", hidden["mean"], width, offsets)
    if not drawing:
        return {"hidden_mean": values, "hidden_positions": positions}
    members = np.repeat(np.arange(len(drawing["counts"])), drawing["counts"]).reshape(width, 256).T
    sizes = np.exp2(drawing["exponents"]).astype(np.float32) if hidden["mean"] != "lossless" else np.ones(1 << 16)
    channels = members[sets]
    return {
        "hidden_mean": (values * sizes[channels]).astype(np.float32),
        "hidden_positions": positions,
        "hidden_channels": channels,
    }


def uniforms(seed: int, row: int, count: int) -> Any:
    """A row's numbers for rounding: 16 bits each of SplitMix64, whose seed is the row's first raw number."""
    first = np.random.Philox(key=[seed, row], counter=[0, 0, 0, 1]).random_raw()
    words = np.uint64(first) + np.arange(1, count // 4 + 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words = (words ^ (words >> np.uint64(shift))) * np.uint64(factor)
    words ^= words >> np.uint64(31)
    return (words.astype("<u8").view("<u2")[:count].astype(np.float32) + np.float32(0.5)) / np.float32(2**16)


def states(stored: dict[str, Any], name: str, precision: str, width: int, offsets: Any = 0.5) -> Any:
    """Hidden states in float32; `offsets` are what rounding has added."""
    kept = stored[name]
    if precision == "lossless":
        return (kept.astype(np.uint32) << 16).view(np.float32) if kept.dtype == np.uint16 else kept.astype(np.float32)
    if precision in ("int4", "int2"):
        bits = int(precision[3])
        parts = np.stack([kept >> shift & (2**bits - 1) for shift in range(0, 8, bits)], axis=-1)
        kept = parts.reshape(*kept.shape[:-1], -1)[..., :width].astype(np.int8) - 2 ** (bits - 1)
    scales = np.repeat(stored[f"{name}_scales"].astype(np.float32), 64, axis=-1)[..., :width]
    return (kept.astype(np.float32) + np.float32(0.5) - np.float32(offsets)) * scales


def probabilities(cache: dict[str, Any], temperature: float) -> tuple[Any, Any]:
    """p_i(T) and pi_i of the kept entries (n, T, K), in float64."""
    targets = cache["manifest"]["targets"]
    betas, top_k = 1 / np.array(targets["node_temperatures"]), targets["top_k"]
    relative = cache["values"].astype(np.float64) - cache["values"][..., :1]

    def chances(beta: float) -> Any:
        weights = [np.prod([(beta - m) / (b - m) for m in betas if m != b]) for b in betas]
        rest = np.exp(cache["log_mass"].astype(np.float64) @ np.array(weights))
        return np.exp(beta * relative) / (np.exp(beta * relative[..., :top_k]).sum(-1) + rest)[..., None]

    included = np.ones_like(relative)
    if targets["samples"]:
        rate = sum(share * chances(1 / t) for t, share in targets["proposal"])
        included[..., top_k:] = np.minimum(1, targets["samples"] * rate)[..., top_k:]
    return chances(1 / temperature), included
