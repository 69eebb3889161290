"""Jobs that survive: a process outside of MPI starts the ranks, watches them, starts them again."""
