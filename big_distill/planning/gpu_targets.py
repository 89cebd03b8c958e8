"""What XLA has to be told of a GPU to compile for one that is not there: a `stream_executor.GpuTargetConfigProto`.

Cores, memories and clocks are NVIDIA's, of the architecture white papers of A100 and H100 (SXM); the limits of threads
and registers are those of compute capability 8.0 and 9.0, CUDA C++ Programming Guide.
"""

from __future__ import annotations

_KIB, _GIB = 1 << 10, 1 << 30


def _target(
    name: str,
    capability: int,
    cores: int,
    lanes: int,
    clock_ghz: float,
    shared_kib: int,
    cache_kib: int,
    memory: int,
    bandwidth: float,
) -> str:
    device = {
        "core_count": cores,
        "fpus_per_core": lanes,
        "clock_rate_ghz": clock_ghz,
        "shared_memory_per_block": 48 * _KIB,
        "shared_memory_per_block_optin": (shared_kib - 1) * _KIB,  # the system keeps one for itself
        "shared_memory_per_core": shared_kib * _KIB,
        "l2_cache_size": cache_kib * _KIB,
        "device_memory_size": memory,
        "memory_bandwidth": int(bandwidth),
        "threads_per_warp": 32,
        "threads_per_block_limit": 1024,
        "threads_per_core_limit": 2048,
        "registers_per_block_limit": 64 * _KIB,
        "registers_per_core_limit": 64 * _KIB,
        "block_dim_limit_x": (1 << 31) - 1,
        "block_dim_limit_y": (1 << 16) - 1,
        "block_dim_limit_z": (1 << 16) - 1,
    }
    fields = " ".join(f"{field}: {value}" for field, value in device.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {capability} }} }} "
        f'platform_name: "CUDA" device_description_str: "{name}" '
        "dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 }"
    )


GPU_TARGETS = {
    "a100": _target("NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 164, 40 * _KIB, 80 * _GIB, 2039e9),
    "a100-40gb": _target("NVIDIA A100-SXM4-40GB", 8, 108, 64, 1.41, 164, 40 * _KIB, 40 * _GIB, 1555e9),
    "h100": _target("NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 228, 50 * _KIB, 80 * _GIB, 3350e9),
}
"""For `jax.experimental.topologies.get_topology_desc(platform='cuda', target_config=...)`."""
