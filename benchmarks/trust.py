"""What trust costs: verify beside sha256sum on the same bytes, digests as a share of reading and of building.

Usage: python -m benchmarks.trust [--rows N] [--repeats N] [--json FILE]
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import figures_parser, in_turns, median_wall, print_figures, seconds, write_json
from delta_common.settings_file import load_settings
from teacher_cache import open_cache
from teacher_cache.build.job import build
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.format.sealed import digest
from teacher_cache.settings import BuildSettings
from teacher_cache.store.local import LocalStore
from teacher_cache.verify.objects import verify

SIZES = {"vocab_size": 8192, "top_k": 8, "samples": 50, "hidden_size": 576, "hidden": "int8"}


def interleaved(repeats: int, *works: Callable[[], object]) -> list[float]:
    """The median seconds of each, taken in turns; the first round counts too."""
    times = in_turns({str(number): work for number, work in enumerate(works)}, repeats, warm_up_rounds=0)
    return [median_wall(found) for found in times.values()]


def sha256sum(files: list[str]) -> None:
    """What people use to check files."""
    program = shutil.which("sha256sum")
    assert program is not None
    subprocess.run([program, *files], stdout=subprocess.DEVNULL, check=True)  # noqa: S603


def read_all(path: Path, check_digests: bool) -> None:
    """Every shard of a cache that was just opened."""
    cache = open_cache(path, check_digests=check_digests)
    for shard in cache.shards:
        cache.rows(shard)


def digest_all(path: Path, keys: list[str]) -> None:
    """The digests a build takes of what it writes."""
    for data in [(path / key).read_bytes() for key in keys]:
        digest(data)


def measure_trust(rows: int, seq_len: int, repeats: int, config: Path | None) -> dict[str, float]:
    """All figures by name; times are medians over rounds in which both sides take turns."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_synthetic_cache(Path(folder) / "cache", rows=rows, seq_len=seq_len, rows_per_shard=64, **SIZES)
        store = LocalStore(path)
        keys = [key for key in store.sizes() if "/c/" in key]
        size = sum(store.sizes()[key] for key in keys)
        files = [str(path / key) for key in keys]
        verified, summed = interleaved(repeats, lambda: verify(store), lambda: sha256sum(files))
        checked, plain = interleaved(repeats, lambda: read_all(path, True), lambda: read_all(path, False))
        found = {
            "bytes": size,
            "verify_seconds": verified,
            "sha256sum_seconds": summed,
            "verify_over_sha256sum": verified / summed,
            "verify_seconds_per_gb": verified / size * 1e9,
            "read_with_digests_over_without": checked / plain,
            "digests_share_of_read": seconds(lambda: digest_all(path, keys)) / plain,
        }
        if config is not None:
            out = Path(folder) / "built"
            settings = load_settings(BuildSettings, config, [])
            took = seconds(lambda: build(settings, out))
            built = [key for key in LocalStore(out).sizes() if "/c/" in key]
            found["digests_share_of_build"] = seconds(lambda: digest_all(out, built)) / took
    return found


def main() -> None:
    """Measure, print, write JSON."""
    parser = figures_parser(__doc__)
    parser.add_argument("--rows", type=int, default=512, help="rows of the cache")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens per row")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--build", type=Path, help="also time a build with these settings")
    arguments = parser.parse_args()
    found = measure_trust(arguments.rows, arguments.seq_len, arguments.repeats, arguments.build)
    print_figures(found, ",.4g", 32)
    write_json(found, arguments.json)


if __name__ == "__main__":
    main()
