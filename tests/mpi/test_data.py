"""Samplers that share out among the ranks, and worker processes beside a running MPI."""

import numpy as np
import pytest

from distgrad.utils import data
from distgrad.utils.data import DataLoader

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


class WithMPI(data.Dataset):
    """Importing mpi4py.MPI starts MPI, unless it is told not to."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        from mpi4py import MPI  # as a user's script does when a worker imports it again

        return index * 10 + MPI.Is_initialized()


def test_an_exact_mean_over_uneven_shares(group):
    values = np.arange(11.0)
    sampler = data.DistributedEvalSampler(values, group.size, group.rank)
    mine = [float(v) for batch in DataLoader(values, 2, sampler=sampler) for v in batch]
    rows = group.all_gather(np.array([sum(mine), len(mine)]))
    assert np.sum(rows, axis=0).tolist() == [values.sum(), 11]


@pytest.mark.parametrize("kind", ["spawn", "forkserver"])
def test_worker_processes_do_not_start_mpi(group, kind):
    loader = DataLoader(WithMPI(), None, num_workers=1, multiprocessing_context=kind)
    assert list(loader) == [0, 10, 20, 30]
    assert group.all_gather(np.array([group.rank]))[-1] == group.size - 1
