"""What is documented of the engines that measurements were made with, as far as it decides what a device does."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from systolith.peers.names import find

__all__ = ["Engine", "engine_of"]

# Ref: TensorRT-LLM, docs/source/performance/perf-overview.md at 00f37686 (v1.0) and
# docs/source/developer-guide/perf-overview.md at 03e27c7d (v1.1): requests by prompt and output length.
_TRTLLM_REQUESTS = {
    (128, 128): 30000, (128, 2048): 3000, (128, 4096): 1500, (1000, 2000): 1500, (2048, 128): 3000, (2048, 2048): 1500,
    (5000, 500): 1500, (1000, 1000): 3000, (500, 2000): 3000, (20000, 2000): 1000, (1024, 1024): 3000,
    (8192, 1024): 1500, (1024, 8192): 1500, (32768, 1024): 1000, (1024, 32768): 1000,
}  # fmt: skip


@dataclass(frozen=True)
class Engine:
    """An engine of a version.

    name : as the table of names has it; "" where it does not.
    kv_share : of the memory beside the weights that becomes KV cache.      most_sequences : that run at once.
    reads_groups_once : whether decode attention reads the keys and values of a group of query heads once, not once a
    query head.
    attention_by_data : whether "TP" of a mixture of experts means attention by data parallelism.
    fixed_batch : whether it runs one batch from beginning to end, with nothing to do on the host for a sequence.
    runs : requests of a measurement at full load, by lengths of prompt and output.
    """

    name: str
    kv_share: float = 0.9
    most_sequences: int = 256
    reads_groups_once: bool = True
    attention_by_data: bool = False
    fixed_batch: bool = False
    runs: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.name)

    def requests(self, prompt: int, output: int) -> float | None:
        """Requests of a measurement at full load; None where that is not documented, which means very many."""
        found = self.runs.get((prompt, output))
        return None if found is None else float(found)


@functools.cache
def engine_of(framework: str) -> Engine:
    """The engine of a row's `framework`, by its name and version.

    TensorRT-LLM: XQA kernels, which read keys and values once a group, came with 0.7 ("New XQA-kernel provides 2.4x
    more Llama-70B throughput within the same latency budget", docs/source/blogs). Its figures until then are those of
    gptSessionBenchmark, a C++ loop over one batch. trtllm-bench sizes its batch by
    tensorrt_llm/bench/build/tuning.py: at most 4,096 sequences, 0.95 of free memory; the overview of v1.0 gives its
    mixtures `--tp` together with enable_attention_dp.
    vLLM: max_num_seqs 1,024 and gpu_memory_utilization 0.9 where V1 serves from a large device.
    """
    name = find("engine", framework) or ""
    versions = [(int(a), int(b)) for a, b in re.findall(r"\b[vV]?(\d{1,3})\.(\d{1,3})", framework)]
    version = max(versions, default=None)
    if name == "tensorrt-llm":
        bench = "bench" in framework.lower()
        return Engine(
            name,
            kv_share=0.95 if bench else 0.9,
            most_sequences=4096 if bench else 2048,
            reads_groups_once=version is None or version >= (0, 7),
            fixed_batch=version is not None and version < (0, 7),
            attention_by_data=bench and version == (1, 0),
            runs=_TRTLLM_REQUESTS if bench else {},
        )
    return Engine(name, most_sequences=1024 if name == "vllm" else 256)
