"""Communication between ranks: process groups over MPI, threads, or one process alone.

`init_process_group` makes the default group. Importing this package starts no MPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distgrad.distributed.collectives import (
    all_gather,
    all_gather_coalesced,
    all_gather_into_tensor,
    all_gather_single,
    all_reduce,
    all_reduce_coalesced,
    all_to_all,
    all_to_all_single,
    barrier,
    broadcast,
    gather,
    reduce,
    reduce_scatter,
    reduce_scatter_single,
    reduce_scatter_tensor,
    scatter,
)
from distgrad.distributed.default import DefaultGroupError, get_group
from distgrad.distributed.env import WorldHint, find_mpirun, world_from_env
from distgrad.distributed.failure import abort_on_failure
from distgrad.distributed.group import (
    CHANNELS,
    OPS,
    ProcessGroup,
    check_same,
)
from distgrad.distributed.handle import Work
from distgrad.distributed.lifecycle import (
    BACKENDS,
    Backend,
    default_pg_timeout,
    destroy_process_group,
    get_default_backend_for_device,
    get_node_local_rank,
    init_process_group,
    is_available,
    is_backend_available,
    is_gloo_available,
    is_initialized,
    is_mpi_available,
    is_nccl_available,
    is_torchelastic_launched,
    is_ucc_available,
    is_xccl_available,
)
from distgrad.distributed.local import local_group
from distgrad.distributed.messages import (
    P2POp,
    batch_isend_irecv,
    irecv,
    isend,
    monitored_barrier,
    recv,
    send,
)
from distgrad.distributed.mpi import mpi_group
from distgrad.distributed.objects import (
    all_gather_object,
    broadcast_object_list,
    gather_object,
    recv_object_list,
    scatter_object_list,
    send_object_list,
)
from distgrad.distributed.progress import (
    CommunicationThread,
    InlineProgress,
    Job,
    Progress,
    start_progress,
)
from distgrad.distributed.reduce_op import ReduceOp, supports_complex
from distgrad.distributed.shrink import shrink
from distgrad.distributed.subgroups import (
    GroupMember,
    get_backend,
    get_global_rank,
    get_group_rank,
    get_pg_count,
    get_process_group_ranks,
    get_rank,
    get_world_size,
    new_group,
    new_subgroups,
    new_subgroups_by_enumeration,
    split_group,
)
from distgrad.distributed.threads import run_ranks
from distgrad.errors import DistributedError, JobLost, RankLost
from distgrad.later import later

if TYPE_CHECKING:
    from distgrad.distributed import algorithms, nn, rpc
    from distgrad.distributed.comm_hooks import GradBucket
    from distgrad.distributed.device_mesh import DeviceMesh, init_device_mesh
    from distgrad.distributed.nn.functional import average_gradients
    from distgrad.distributed.store import (
        DistNetworkError,
        DistStoreError,
        FileStore,
        HashStore,
        PrefixStore,
        QueueEmptyError,
        Store,
        TCPStore,
    )

DistError = DistBackendError = DistributedError
group = GroupMember  # PyTorch's other name for it; the module of that name keeps its path

__all__ = [
    "BACKENDS",
    "CHANNELS",
    "OPS",
    "Backend",
    "CommunicationThread",
    "DefaultGroupError",
    "DeviceMesh",
    "DistBackendError",
    "DistError",
    "DistNetworkError",
    "DistStoreError",
    "FileStore",
    "GradBucket",
    "GroupMember",
    "HashStore",
    "InlineProgress",
    "Job",
    "JobLost",
    "P2POp",
    "PrefixStore",
    "ProcessGroup",
    "Progress",
    "QueueEmptyError",
    "RankLost",
    "ReduceOp",
    "Store",
    "TCPStore",
    "Work",
    "WorldHint",
    "abort_on_failure",
    "algorithms",
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_gather_single",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all",
    "all_to_all_single",
    "average_gradients",
    "barrier",
    "batch_isend_irecv",
    "broadcast",
    "broadcast_object_list",
    "check_same",
    "default_pg_timeout",
    "destroy_process_group",
    "find_mpirun",
    "gather",
    "gather_object",
    "get_backend",
    "get_default_backend_for_device",
    "get_global_rank",
    "get_group",
    "get_group_rank",
    "get_node_local_rank",
    "get_pg_count",
    "get_process_group_ranks",
    "get_rank",
    "get_world_size",
    "group",
    "init_device_mesh",
    "init_process_group",
    "irecv",
    "is_available",
    "is_backend_available",
    "is_gloo_available",
    "is_initialized",
    "is_mpi_available",
    "is_nccl_available",
    "is_torchelastic_launched",
    "is_ucc_available",
    "is_xccl_available",
    "isend",
    "local_group",
    "monitored_barrier",
    "mpi_group",
    "new_group",
    "new_subgroups",
    "new_subgroups_by_enumeration",
    "nn",
    "recv",
    "recv_object_list",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
    "rpc",
    "run_ranks",
    "scatter",
    "scatter_object_list",
    "send",
    "send_object_list",
    "shrink",
    "split_group",
    "start_progress",
    "supports_complex",
    "world_from_env",
]

_STORES = (
    "DistNetworkError", "DistStoreError", "FileStore", "HashStore", "PrefixStore",
    "QueueEmptyError", "Store", "TCPStore",
)  # fmt: skip
__getattr__ = later(
    __name__,
    {name: f"distgrad.distributed.{name}" for name in ("algorithms", "nn", "optim", "rpc")}
    | {name: "distgrad.distributed.store:" for name in _STORES}
    | {
        "DeviceMesh": "distgrad.distributed.device_mesh:",
        "GradBucket": "distgrad.distributed.comm_hooks:",
        "average_gradients": "distgrad.distributed.nn.functional:",
        "init_device_mesh": "distgrad.distributed.device_mesh:",
    },
)
