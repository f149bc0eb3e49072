"""The native extension (native/): MLX primitives over the paged KV pools, and what measures them.

Symbols in shapes:
    T            rows of a step: one token each
    S            sequences of a step
    N            pairs of blocks
    num_blocks   blocks of a pool; block_size token positions each
    num_q_heads  a multiple of num_kv_heads
    key_dim      head size of queries and keys, value_dim that of values; multiples of 8

The operations build a graph and run when it is evaluated. Building checks ranks, shapes and dtypes
(ValueError "[operation] argument ..."). On the CPU evaluating checks every index before it is
followed, and raises RuntimeError from `mx.eval`. After such an error the outputs hold no defined
values: discard the step. A GPU can't raise: a slot or block past the pool is not written, and a
row that would need one comes out as NaN. A build without kernels for the GPU at hand raises
RuntimeError there (`--attention gather` is the way). Like all of MLX, they must be built and
evaluated by the thread that owns the stream.
"""

import mlx.core as mx

built_mlx_version: str
"""Version of the MLX that the extension was built against; importing requires the same."""

def probe(a: mx.array) -> mx.array:
    """Returns its argument: fails with TypeError if MLX's types are not those of this extension."""

def kv_write(
    k_pool: mx.array,
    v_pool: mx.array,
    keys: mx.array,
    values: mx.array,
    slots: mx.array,
    *,
    stream: mx.Stream | mx.Device | mx.ThreadLocalStream | None = None,
) -> tuple[mx.array, mx.array]:
    """Writes rows of keys and values into slots of the pools, in place, and returns new handles.

    The returned arrays share the pools' memory: nothing is copied, whatever still holds the old
    handles. Rebind them and let every reader take the returned ones: a handle that nobody reads is
    never written, and an old handle may or may not show the new bytes. Writes may be chained;
    within one graph no reader of an older handle may stand between.

    Args:
        k_pool: [num_blocks, block_size, num_kv_heads, key_dim], any dtype, row-contiguous.
        v_pool: [num_blocks, block_size, num_kv_heads, value_dim], any dtype, row-contiguous.
        keys: [T, num_kv_heads, key_dim], cast to k_pool's dtype; any strides.
        values: [T, num_kv_heads, value_dim], cast to v_pool's dtype; any strides.
        slots: [T] int64, block_id * block_size + offset, distinct; negative: the row is skipped.
        stream: Stream or device; default: the current stream.

    Raises:
        ValueError: a rank, shape or dtype does not fit.
        RuntimeError: at evaluation: a slot is past the pool (nothing is written), a pool is not
            row-contiguous, or the stream is a GPU's.
    """

def copy_blocks(
    pools: list[mx.array],
    sources: mx.array,
    destinations: mx.array,
    *,
    stream: mx.Stream | mx.Device | mx.ThreadLocalStream | None = None,
) -> list[mx.array]:
    """Copies blocks inside each pool, in place, and returns new handles; see kv_write about them.

    All sources are read before any destination is written: chains and swaps mean what they say.

    Args:
        pools: each [num_blocks, ...], any dtype and rank, row-contiguous, num_blocks the same in
        all.
        sources: [N] int32.
        destinations: [N] int32, distinct. A pair with a negative member is skipped.
        stream: Stream or device; default: the current stream.

    Raises:
        ValueError: a rank, shape or dtype does not fit, or a pool is named twice.
        RuntimeError: at evaluation: an index is past the pools, a destination stands twice (nothing
            is copied), a pool is not row-contiguous, or the stream is a GPU's.
    """

def hold_pools(
    arrays: list[mx.array],
    pools: list[mx.array],
    *,
    stream: mx.Stream | mx.Device | mx.ThreadLocalStream | None = None,
) -> list[mx.array]:
    """Returns the arrays as they are; later writes into the pools wait until they are computed.

    It follows reads of the pools by mlx's own operations (`pool[blocks]`). mlx knows nothing of
    writes in place: on a GPU one could otherwise overtake such a read, on Metal in a later command
    buffer, on CUDA within one graph. Take the returned handles: if nobody reads them nothing is
    held. The operations here need it not.

    Args:
        arrays: at least one, of any shape and dtype: what was read. Nothing is copied.
        pools: at least one: what it was read from.
        stream: Stream or device; default: the current stream.

    Raises:
        ValueError: there are no arrays, or no pools.
        RuntimeError: at evaluation: the stream is a GPU's that this build has no kernels for.
    """

def paged_attention(
    q: mx.array,
    k_pool: mx.array,
    v_pool: mx.array,
    block_tables: mx.array,
    query_start: mx.array,
    context_len: mx.array,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: mx.array | None = None,
    most_rows: int = 0,
    positions: int = 0,
    stream: mx.Stream | mx.Device | mx.ThreadLocalStream | None = None,
) -> mx.array:
    """Returns causal attention of each sequence's rows over its blocks, accumulated in float32.

    Row r of sequence s stands at position p = context_len[s] - (query_start[s + 1] - r) and sees
    the positions c <= p, with a window only c > p - window. Nothing else is read: not the rest of a
    block, not a block wholly outside the window (its table entry may be anything). A row's bits
    depend on its own query, position and visible keys and values: not on the batch, on how a prompt
    was cut into chunks, on the block size or on threads; they do depend on the instruction set
    (`simd_level`). On a GPU the last bits also depend on the step's shapes and hints.

    Args:
        q: [T, num_q_heads, key_dim] float32, bfloat16 or float16; any strides.
        k_pool: [num_blocks, block_size, num_kv_heads, key_dim] of the same three dtypes, not
            necessarily q's; row-contiguous.
        v_pool: [num_blocks, block_size, num_kv_heads, value_dim], k_pool's dtype, row-contiguous.
        block_tables: [S, max_blocks] int32; entry b holds positions b * block_size and on.
        query_start: [S + 1] int32, from 0 and not falling: rows [query_start[s], query_start[s +
        1])
            are sequence s's. Rows from query_start[S] on are padding.
        context_len: [S] int32, positions of s including this step's rows.
        scale: Factor of the scores, finite.
        window: Positions that a row sees, itself included; 0: all.
        softcap: c > 0: a scaled score s becomes c * tanh(s / c); 0: none.
        sinks: [num_q_heads]: a logit per head that takes weight and gives no value, as in
            mx.fast.scaled_dot_product_attention; used in float32.
        most_rows: Rows of the sequence that has most, if the caller knows: 1 spares a GPU the
            kernel for the others. Rows of a sequence with more are then undefined on a GPU.
        positions: That the rows see, each sequence's counted once, if the caller knows: a GPU cuts
            contexts by it.
        stream: Stream or device; default: the current stream.

    Returns:
        [T, num_q_heads, value_dim] in q's dtype. Padding rows and rows that see nothing are zero.

    Raises:
        ValueError: a rank, shape, dtype or option does not fit.
        RuntimeError: at evaluation: query_start, context_len or a needed entry of block_tables is
        out
            of range, a pool is not row-contiguous, or the stream is a GPU's.
    """

def norm_rope_write(
    qkv: mx.array,
    q_norm: mx.array | None,
    k_norm: mx.array | None,
    eps: float,
    positions: mx.array,
    inverse_frequencies: mx.array,
    scale: float,
    traditional: bool,
    keys: mx.array,
    values: mx.array,
    slots: mx.array,
    num_q_heads: int,
    num_kv_heads: int,
    *,
    stream: mx.Stream | mx.Device | mx.ThreadLocalStream | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """Norms and turns the heads of a merged projection, writes keys and values into the pools in
    place, and returns the queries and the pools' new handles; see kv_write about those.

    Each query and key head goes through mx.fast.rms_norm, if there are weights, and mx.fast.rope;
    results are rounded to qkv's dtype where those round on the same device: on a CPU bfloat16 and
    float16 come out the same but for the last bit of a norm whose sum went another way. Whatever
    the dtype, sums are taken in float32.

    Args:
        qkv: [T, (num_q_heads + 2 * num_kv_heads) * head_dim] float32, bfloat16 or float16: query
            heads, then keys, then values. Any strides on the CPU, row-contiguous on a GPU.
        q_norm: [head_dim] in qkv's dtype, or None: queries are not normed.
        k_norm: The same for keys.
        eps: Added to the mean square; 0 or positive.
        positions: [T] int32.
        inverse_frequencies: [pairs] float32, 1 <= pairs <= head_dim / 2: pair i turns by
            positions[t] * scale * inverse_frequencies[i]; see `mlxrt.kernels.frequencies`. A pair
            is entries i and pairs + i of a head, traditionally 2 i and 2 i + 1; the entries from
            2 * pairs on do not turn.
        scale: Factor of the positions, finite.
        traditional: Which entries are a pair.
        keys: [num_blocks, block_size, num_kv_heads, head_dim] float32, bfloat16 or float16, not
            necessarily qkv's (on a GPU it must be); row-contiguous.
        values: The same shape and dtype.
        slots: [T] int64, as for kv_write.
        num_q_heads: Query heads.
        num_kv_heads: Heads of keys, and of values.
        stream: Stream or device; default: the current stream.

    Returns:
        Queries [T, num_q_heads, head_dim] in qkv's dtype; the handles of both pools.

    Raises:
        ValueError: a rank, shape, dtype or option does not fit.
        RuntimeError: at evaluation: a slot is past the pools (nothing is written), a pool is not
            row-contiguous, or no kernel of the stream's GPU serves the call.
    """

def add_rms_norm(
    x: mx.array,
    residual: mx.array,
    weight: mx.array,
    eps: float,
    *,
    stream: mx.Stream | mx.Device | mx.ThreadLocalStream | None = None,
) -> tuple[mx.array, mx.array]:
    """Returns x + residual and that times weight over its root mean square.

    Both are rounded to the dtype where addition and mx.fast.rms_norm are.

    Args:
        x: [T, N] float32, bfloat16 or float16. Any strides on the CPU, row-contiguous on a GPU, as
            all three.
        residual: [T, N] of x's dtype.
        weight: [N] of x's dtype.
        eps: Added to the mean square; 0 or positive.
        stream: Stream or device; default: the current stream.

    Raises:
        ValueError: a rank, shape or dtype does not fit.
        RuntimeError: at evaluation: no kernel of the stream's GPU serves the call.
    """

def swiglu(
    gate_up: mx.array,
    *,
    stream: mx.Stream | mx.Device | mx.ThreadLocalStream | None = None,
) -> mx.array:
    """Returns silu of the rows' first halves times their second halves.

    Rounded where x * mx.sigmoid(x) * up is on the same device.

    Args:
        gate_up: [T, 2 * I] float32, bfloat16 or float16. Any strides on the CPU, row-contiguous on
            a GPU.
        stream: Stream or device; default: the current stream.

    Returns:
        [T, I] in gate_up's dtype.

    Raises:
        ValueError: the rank, shape or dtype does not fit.
        RuntimeError: at evaluation: no kernel of the stream's GPU serves the call.
    """

def sample(
    logits: mx.array,
    rules: mx.array,
    *,
    stream: mx.Stream | mx.Device | mx.ThreadLocalStream | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """Samples one token per row by rules 3 to 7 of mlxrt/v1/sampling.proto, without a sort.

    Weights are integers: e^((logit - largest) / temperature) in units of 2^-40, rounded down. Their
    sums are exact, so a row's result depends on its own logits and rules alone, to the bit: not on
    the batch, on threads or on the instruction set. A GPU that divides, multiplies and adds float32
    as IEEE 754 says gives the same bits.

    Args:
        logits: [S, V] float32, float16 or bfloat16, V at most 2^20. Minus infinity: not allowed.
            On Metal the first one begins at a multiple of 16 bytes.
        rules: [R, 5] float32, R at least 1: temperature (0: greedy), top_k (0: off), top_p,
            min_p_depth (-ln(min_p), infinity: off), uniform (0 to 1, 1 excluded). Rows from R on
            are greedy, R may exceed S. A value out of its range counts as off, as 0 or as greedy.
        stream: Stream or device; default: the current stream.

    Returns:
        tokens: [S] int32; 0 in a row with NaN or plus infinity, or of nothing but minus infinity.
        finite: [S] bool, whether no logit of the row is NaN or infinite.
        least: [S] float32, the least logit that rules 4 to 6 keep; minus infinity for greedy rows
            and where the token is 0 for want of a distribution.

    Raises:
        ValueError: a rank, shape or dtype does not fit.
        RuntimeError: at evaluation, on a GPU that this build has no kernels for.
    """

def gpu_refusal(q: mx.array, k_pool: mx.array, v_pool: mx.array) -> str:
    """Returns why no GPU kernel attends over these, by their shapes and dtypes; empty if one does.

    On a GPU `paged_attention` raises RuntimeError with this reason when it is evaluated.
    """

def counters() -> dict[str, int]:
    """Returns how often each operation was evaluated since the start or the last reset."""

def reset_counters() -> None:
    """Sets the counts to zero."""

def num_threads() -> int:
    """Returns how many threads an evaluation may use, its own included; at first all the cores."""

def set_num_threads(count: int) -> None:
    """Sets how many threads an evaluation may use, at least 1. Small work uses one anyway."""

def simd_level() -> str:
    """Returns the instruction set in use: "avx512", "avx2", "neon" or "generic"."""

def simd_levels() -> list[str]:
    """Returns the instruction sets that this build has and this machine runs, best first."""

def set_simd_level(level: str) -> None:
    """Chooses the instruction set, or the best one by "auto"; ValueError if it can't run here."""

def read_bandwidth(gigabytes: float = 0.5, repeats: int = 5, threads: int | None = None) -> float:
    """Returns the best rate, in GB/s, at which threads read a buffer of that many 10^9 bytes.

    The roofline of decode attention if the buffer is well beyond the caches. Releases the GIL.

    Args:
        gigabytes: Size of the buffer, allocated and freed here.
        repeats: Times that the buffer is read; the best counts.
        threads: Default: num_threads(); no more than num_threads() run at once.
    """

def data_address(a: mx.array) -> int:
    """Evaluates an array and returns the address of its data: tests of in-place work compare it."""
