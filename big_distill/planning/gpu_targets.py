"""Gives XLA the facts to compile for a GPU that is not there, as a `stream_executor.GpuTargetConfigProto`.

Cores, memories and clocks are NVIDIA's, from the architecture white papers of A100 and H100 (SXM). The limits of
threads and registers are those of compute capability 8.0 and 9.0, from the CUDA C++ Programming Guide.
"""

from __future__ import annotations

_TARGET = """
gpu_device_info {{
  {facts} device_memory_size: {memory} memory_bandwidth: {bandwidth}
  shared_memory_per_block: 49152 registers_per_block_limit: 65536 registers_per_core_limit: 65536
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
platform_name: "CUDA" device_description_str: "{name}"
dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 13 }}
"""
# The system keeps one KiB of the shared memory of a core (164 and 228 KiB) for itself.
_A100 = f"""
  core_count: 108 fpus_per_core: 64 clock_rate_ghz: 1.41 l2_cache_size: {40 << 20}
  shared_memory_per_core: {164 << 10} shared_memory_per_block_optin: {163 << 10} cuda_compute_capability {{ major: 8 }}
"""
_H100 = f"""
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: {50 << 20}
  shared_memory_per_core: {228 << 10} shared_memory_per_block_optin: {227 << 10} cuda_compute_capability {{ major: 9 }}
"""
GPU_TARGETS = {
    kind: _TARGET.format(name=name, facts=facts, memory=gib << 30, bandwidth=bandwidth)
    for kind, name, facts, gib, bandwidth in (
        ("a100", "NVIDIA A100-SXM4-80GB", _A100, 80, 2_039_000_000_000),
        ("a100-40gb", "NVIDIA A100-SXM4-40GB", _A100, 40, 1_555_000_000_000),
        ("h100", "NVIDIA H100 80GB HBM3", _H100, 80, 3_350_000_000_000),
    )
}
"""Texts for `jax.experimental.topologies.get_topology_desc(platform='cuda', target_config=...)`."""
