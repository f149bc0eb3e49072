"""vLLM's view of the server's KV pool: one vLLM group for each of the server's.

vLLM draws the blocks of all groups from one pool: a block id belongs to one group at a time. On the
server ids are per group. So block `b` of vLLM is leased in every group, and where there are several
groups each id lies idle in all of them but one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from mlxrt_client import v1
from vllm.v1.core.kv_cache_config_builder import KVCacheConfigBuilder
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    KVCacheTensor,
    SlidingWindowSpec,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig

TORCH_TYPES = {
    v1.DataType.DATA_TYPE_FLOAT32: torch.float32,
    v1.DataType.DATA_TYPE_FLOAT16: torch.float16,
    v1.DataType.DATA_TYPE_BFLOAT16: torch.bfloat16,
}
LAYOUTS = ["LBNHC"]
"""Layouts that vLLM may choose from; what it chooses is never used."""


def block_count(model: v1.GetModelInfoResponse) -> int:
    """Blocks that vLLM may be given, its null block included: the smallest group's."""
    return int(min(group.block_count for group in model.groups))


def block_bytes(model: v1.GetModelInfoResponse) -> int:
    """Bytes of one block id, over all groups."""
    return int(sum(group.block_bytes for group in model.groups))


def cache_specs(model: v1.GetModelInfoResponse) -> dict[str, KVCacheSpec]:
    """One layer of vLLM's for each group of the server's, named by the group's number.

    Raises:
        ValueError: a group holds what vLLM's first model runner has no plan for.
    """
    return {layer_name(group.group): _spec(model, group) for group in model.groups}


def layer_name(group: int) -> str:
    """Name of the layer that stands for a group."""
    return f"mlxrt.group.{group}"


def group_number(name: str) -> int:
    """The group that a layer stands for."""
    return int(name.rpartition(".")[2])


def _spec(model: v1.GetModelInfoResponse, group: v1.GroupInfo) -> KVCacheSpec:
    dtype = TORCH_TYPES.get(model.kv_data_type)
    if dtype is None:
        raise ValueError(f"the server's KV has data type {model.kv_data_type}, unknown here")
    # What a block weighs is all that vLLM asks of heads and their size.
    row_elements = group.block_bytes // (model.block_size * dtype.itemsize)
    shape = {
        "block_size": model.block_size,
        "num_kv_heads": 1,
        "head_size": row_elements // 2,
        "head_size_v": row_elements - row_elements // 2,
        "dtype": dtype,
    }
    if group.kind == v1.GroupKind.GROUP_KIND_FULL:
        return FullAttentionSpec(**shape)
    if group.kind == v1.GroupKind.GROUP_KIND_WINDOW:
        return SlidingWindowSpec(**shape, sliding_window=group.window)
    raise ValueError(f"the server's group {group.group} is of kind {group.kind}, unknown here")


class ServerCacheConfigBuilder(KVCacheConfigBuilder):
    """Takes each layer of `cache_specs` as a group of its own and places nothing."""

    def get_kv_cache_groups(
        self, vllm_config: VllmConfig, kv_cache_spec: dict[str, KVCacheSpec]
    ) -> list[KVCacheGroupSpec]:
        """One group for each layer, by the groups' numbers."""
        names = sorted(kv_cache_spec, key=group_number)
        return [KVCacheGroupSpec([name], kv_cache_spec[name]) for name in names]

    def get_kv_cache_config_from_groups(
        self,
        vllm_config: VllmConfig,
        kv_cache_groups: list[KVCacheGroupSpec],
        num_blocks: int,
    ) -> KVCacheConfig:
        """The groups with `num_blocks` blocks; the tensors say their sizes and are never made."""
        tensors = [
            KVCacheTensor(
                size=num_blocks * group.kv_cache_spec.page_size_bytes,
                layers=list(group.layer_names),
                layer_stride=0,
                block_stride=group.kv_cache_spec.page_size_bytes,
            )
            for group in kv_cache_groups
        ]
        return KVCacheConfig(num_blocks, tensors, kv_cache_groups)

    def _get_pool_bytes_per_block(
        self, vllm_config: VllmConfig, kv_cache_groups: list[KVCacheGroupSpec]
    ) -> int:
        """Bytes of one block id, over all groups."""
        return sum(group.kv_cache_spec.page_size_bytes for group in kv_cache_groups)
