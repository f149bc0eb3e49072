"""Client of mlxrt: typed sessions and steps over gRPC, for a scheduler of your own."""
