"""The core: sessions, leases, blocks, sequences, steps. Synchronous; no clock, no randomness, no
grpc, no mlx inside.
"""
