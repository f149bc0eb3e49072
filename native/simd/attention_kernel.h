#pragma once

// The attention kernel, written once in terms of the vector type that the including file chose.
// Everything is in an unnamed namespace and nothing of the standard library is used: see
// attention.h.
//
// For every tile of 32 positions, for every KV head: the scores of all query rows (dot products,
// four positions at a time), the running softmax, then the weighted values. Each loaded K and V
// vector serves up to row_block rows. A row's result is the same, bit for bit, whatever rows stand
// beside it: every row has its own sequence of operations, in ascending order of positions.

#include <string.h>

#include "simd/attention.h"

namespace {

using mlxrt::kernels::AttentionPart;
using mlxrt::kernels::ElementType;
using mlxrt::kernels::no_maximum;
using mlxrt::kernels::tile_positions;
using Vec = Simd::Vec;

constexpr int chunk_rows = 32; // query rows of one KV head that are scored together
constexpr float log2_e = 1.44269504088896340736f;

template <ElementType T>
constexpr int element_bytes = T == ElementType::float32 ? 4 : 2;

template <ElementType T>
inline Vec load_elements(const char* p) {
  if constexpr (T == ElementType::float32) {
    return Simd::load_float32(p);
  } else if constexpr (T == ElementType::bfloat16) {
    return Simd::load_bfloat16(p);
  } else {
    return Simd::load_float16(p);
  }
}

template <ElementType T>
inline Vec load_last_elements(const char* p) {
  if constexpr (T == ElementType::float32) {
    return Simd::load_float32_half(p);
  } else if constexpr (T == ElementType::bfloat16) {
    return Simd::load_bfloat16_half(p);
  } else {
    return Simd::load_float16_half(p);
  }
}

inline int min_int(int64_t a, int64_t b) { return static_cast<int>(a < b ? a : b); }
inline int max_int(int64_t a, int64_t b) { return static_cast<int>(a > b ? a : b); }

// 2^x. Source: the polynomial of Cephes' exp2f (S. Moshier, public domain).
inline Vec exp2_of(Vec x) {
  x = Simd::max(Simd::broadcast(-126.0f), Simd::min(Simd::broadcast(127.0f), x));
  const Vec n = Simd::round(x);
  const Vec f = Simd::sub(x, n);
  Vec p = Simd::broadcast(1.535336188319500e-4f);
  p = Simd::fma(p, f, Simd::broadcast(1.339887440266574e-3f));
  p = Simd::fma(p, f, Simd::broadcast(9.618437357674640e-3f));
  p = Simd::fma(p, f, Simd::broadcast(5.550332471162809e-2f));
  p = Simd::fma(p, f, Simd::broadcast(2.402264791363012e-1f));
  p = Simd::fma(p, f, Simd::broadcast(6.931472028550421e-1f));
  p = Simd::fma(p, f, Simd::broadcast(1.0f));
  return Simd::scale_by_power(p, n);
}

inline float exp2_of(float x) {
  float lanes[Simd::lanes];
  Simd::store(lanes, exp2_of(Simd::broadcast(x)));
  return lanes[0];
}

// log2(e) * cap * tanh(score / cap).
inline Vec cap_scores(Vec scores, float cap) {
  const Vec one = Simd::broadcast(1.0f);
  const Vec power = exp2_of(Simd::mul(scores, Simd::broadcast(2.0f * log2_e / cap)));
  const Vec tanh = Simd::sub(one, Simd::div(Simd::broadcast(2.0f), Simd::add(power, one)));
  return Simd::mul(tanh, Simd::broadcast(cap * log2_e));
}

// Where the positions of a tile lie in the pools, for KV head 0. Only the columns [begin, end) may
// be read; the pointers beside them repeat a readable one, so that columns go by fours.
struct Tile {
  int begin;
  int end;
  const char* keys[tile_positions];
  const char* values[tile_positions];
};

template <ElementType T>
void locate_tile(const AttentionPart& part, int64_t start, int64_t low, int64_t high, Tile& tile) {
  tile.begin = max_int(0, low - start);
  tile.end = min_int(tile_positions, high - start);
  const int64_t first = start + tile.begin;
  const int64_t key_row = static_cast<int64_t>(part.num_kv_heads) * part.key_dim * element_bytes<T>;
  const int64_t value_row =
      static_cast<int64_t>(part.num_kv_heads) * part.value_dim * element_bytes<T>;
  int64_t index = first / part.block_size;
  int offset = static_cast<int>(first % part.block_size);
  for (int c = tile.begin; c < tile.end; ++c) {
    const int64_t slot = static_cast<int64_t>(part.table[index]) * part.block_size + offset;
    tile.keys[c] = part.keys + slot * key_row;
    tile.values[c] = part.values + slot * value_row;
    if (++offset == part.block_size) {
      offset = 0;
      ++index;
    }
  }
  for (int c = tile.begin & ~3; c < tile.begin; ++c) {
    tile.keys[c] = tile.keys[tile.begin];
  }
  for (int c = tile.end; c & 3; ++c) {
    tile.keys[c] = tile.keys[tile.end - 1];
  }
}

inline void prefetch(const char* row, int bytes) {
  for (int i = 0; i < bytes; i += 64) {
    __builtin_prefetch(row + i, 0, 2);
  }
}

// Scores of R rows at four positions.
template <ElementType T, int R>
inline void score_block(const float* const* queries, const char* const* keys, int64_t head_bytes,
                        int dim, float* scores) {
  Vec sums[R][4];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < 4; ++n) {
      sums[r][n] = Simd::zero();
    }
  }
  const char* k[4];
  for (int n = 0; n < 4; ++n) {
    k[n] = keys[n] + head_bytes;
  }
  int i = 0;
  for (; i + Simd::lanes <= dim; i += Simd::lanes) {
    Vec key[4];
    for (int n = 0; n < 4; ++n) {
      key[n] = load_elements<T>(k[n] + i * element_bytes<T>);
    }
    for (int r = 0; r < R; ++r) {
      const Vec query = Simd::load(queries[r] + i);
      for (int n = 0; n < 4; ++n) {
        sums[r][n] = Simd::fma(key[n], query, sums[r][n]);
      }
    }
  }
  if (i < dim) {
    for (int r = 0; r < R; ++r) {
      const Vec query = Simd::load(queries[r] + i);
      for (int n = 0; n < 4; ++n) {
        const Vec key = load_last_elements<T>(k[n] + i * element_bytes<T>);
        sums[r][n] = Simd::fma(key, query, sums[r][n]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    Simd::sum4(sums[r][0], sums[r][1], sums[r][2], sums[r][3], scores + r * tile_positions);
  }
}

// Adds weights times values of the columns [begin, end) to J vectors of R rows' outputs.
template <ElementType T, int R, int J, bool Last = false>
inline void weigh_block(float* const* outputs, const float* weights, const char* const* values,
                        int64_t head_bytes, int begin, int end, int at) {
  Vec sums[R][J];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < J; ++j) {
      sums[r][j] = Simd::load(outputs[r] + at + j * Simd::lanes);
    }
  }
  head_bytes += at * element_bytes<T>;
  for (int c = begin; c < end; ++c) {
    const char* v = values[c] + head_bytes;
    Vec value[J];
    for (int j = 0; j < J; ++j) {
      value[j] = Last ? load_last_elements<T>(v)
                      : load_elements<T>(v + j * Simd::lanes * element_bytes<T>);
    }
    for (int r = 0; r < R; ++r) {
      const Vec weight = Simd::broadcast(weights[r * tile_positions + c]);
      for (int j = 0; j < J; ++j) {
        sums[r][j] = Simd::fma(value[j], weight, sums[r][j]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < J; ++j) {
      Simd::store(outputs[r] + at + j * Simd::lanes, sums[r][j]);
    }
  }
}

template <ElementType T, int R>
void weigh_rows(float* const* outputs, const float* weights, const char* const* values,
                int64_t head_bytes, int begin, int end, int dim) {
  if (begin >= end) {
    return;
  }
  constexpr int widest = Simd::accumulators / R < 8 ? Simd::accumulators / R : 8;
  int at = 0;
  for (; at + widest * Simd::lanes <= dim; at += widest * Simd::lanes) {
    weigh_block<T, R, widest>(outputs, weights, values, head_bytes, begin, end, at);
  }
  if constexpr (widest > 4) {
    for (; at + 4 * Simd::lanes <= dim; at += 4 * Simd::lanes) {
      weigh_block<T, R, 4>(outputs, weights, values, head_bytes, begin, end, at);
    }
  }
  for (; at + 2 * Simd::lanes <= dim; at += 2 * Simd::lanes) {
    weigh_block<T, R, 2>(outputs, weights, values, head_bytes, begin, end, at);
  }
  for (; at + Simd::lanes <= dim; at += Simd::lanes) {
    weigh_block<T, R, 1>(outputs, weights, values, head_bytes, begin, end, at);
  }
  if (at < dim) {
    weigh_block<T, R, 1, true>(outputs, weights, values, head_bytes, begin, end, at);
  }
}

// Up to 32 query rows of one KV head, and which columns of the tile each of them sees.
struct Chunk {
  int count;
  const float* queries[chunk_rows];
  float* outputs[chunk_rows];
  float* maxima[chunk_rows];
  float* sums[chunk_rows];
  int begin[chunk_rows];
  int end[chunk_rows];
  alignas(64) float scores[chunk_rows * tile_positions];
};

void gather_chunk(const AttentionPart& part, const Tile& tile, int64_t start, int head, int from,
                  Chunk& chunk) {
  const int group = part.num_q_heads / part.num_kv_heads;
  chunk.count = min_int(chunk_rows, part.rows * group - from);
  for (int i = 0; i < chunk.count; ++i) {
    const int row = (from + i) / group;
    const int64_t index =
        static_cast<int64_t>(row) * part.num_q_heads + head * group + (from + i) % group;
    chunk.queries[i] = part.queries + index * part.key_stride;
    chunk.outputs[i] = part.outputs + index * part.value_stride;
    chunk.maxima[i] = part.maxima + index;
    chunk.sums[i] = part.sums + index;
    const int64_t column = part.first_position + row - start;
    chunk.end[i] = max_int(tile.begin, min_int(tile.end, column + 1));
    chunk.begin[i] =
        part.window > 0 ? max_int(tile.begin, min_int(tile.end, column - part.window + 1))
                        : tile.begin;
  }
}

// Turns row i's scores into weights and brings its maximum, sum and outputs up to date.
inline void weigh_scores(const AttentionPart& part, Chunk& chunk, int i) {
  const int begin = chunk.begin[i];
  const int end = chunk.end[i];
  if (begin >= end) {
    return;
  }
  float* scores = chunk.scores + i * tile_positions;
  const Vec hidden = Simd::broadcast(no_maximum);
  Vec most = hidden;
  for (int c = 0; c < tile_positions; c += Simd::lanes) {
    Vec s = Simd::load(scores + c);
    if (part.softcap > 0.0f) {
      s = cap_scores(s, part.softcap);
    }
    s = Simd::keep(s, begin - c, end - c, hidden);
    Simd::store(scores + c, s);
    most = Simd::max(s, most);
  }
  const float before = *chunk.maxima[i];
  const float tile_maximum = Simd::maximum(most);
  const float maximum = tile_maximum > before ? tile_maximum : before;
  Vec total = Simd::zero();
  for (int c = 0; c < tile_positions; c += Simd::lanes) {
    Vec w = exp2_of(Simd::sub(Simd::load(scores + c), Simd::broadcast(maximum)));
    w = Simd::keep(w, begin - c, end - c, Simd::zero());
    Simd::store(scores + c, w);
    total = Simd::add(total, w);
  }
  if (maximum != before) {
    const float factor = exp2_of(before - maximum);
    *chunk.maxima[i] = maximum;
    *chunk.sums[i] *= factor;
    const Vec scale = Simd::broadcast(factor);
    for (int d = 0; d < part.value_dim; d += Simd::lanes) {
      Simd::store(chunk.outputs[i] + d, Simd::mul(Simd::load(chunk.outputs[i] + d), scale));
    }
  }
  *chunk.sums[i] += Simd::sum(total);
}

// The weighted values of R rows. The columns that all of them see are shared; what only some see is
// added row by row, before and after: a hidden column is not multiplied by zero, it may hold a NaN.
template <ElementType T, int R>
void weigh_values(const AttentionPart& part, const Tile& tile, Chunk& chunk, int from,
                  int64_t head_bytes) {
  int begin = 0;
  int end = tile_positions;
  for (int r = from; r < from + R; ++r) {
    begin = max_int(begin, chunk.begin[r]);
    end = min_int(end, chunk.end[r]);
  }
  const float* weights = chunk.scores + from * tile_positions;
  const int dim = part.value_dim;
  if constexpr (R == 1) {
    weigh_rows<T, 1>(chunk.outputs + from, weights, tile.values, head_bytes, begin, end, dim);
  } else {
    const bool shared = begin < end;
    for (int r = 0; r < R; ++r) {
      weigh_rows<T, 1>(chunk.outputs + from + r, weights + r * tile_positions, tile.values,
                       head_bytes, chunk.begin[from + r], shared ? begin : chunk.end[from + r],
                       dim);
    }
    if (!shared) {
      return;
    }
    weigh_rows<T, R>(chunk.outputs + from, weights, tile.values, head_bytes, begin, end, dim);
    for (int r = 0; r < R; ++r) {
      weigh_rows<T, 1>(chunk.outputs + from + r, weights + r * tile_positions, tile.values,
                       head_bytes, end, chunk.end[from + r], dim);
    }
  }
}

template <ElementType T, int R>
inline void score_rows(const AttentionPart& part, const Tile& tile, Chunk& chunk, int from,
                       int column, int64_t head_bytes) {
  score_block<T, R>(chunk.queries + from, tile.keys + column, head_bytes, part.key_dim,
                    chunk.scores + from * tile_positions + column);
}

template <ElementType T>
void attend_chunk(const AttentionPart& part, const Tile& tile, const Tile* next, int head,
                  Chunk& chunk) {
  const int64_t key_bytes = static_cast<int64_t>(head) * part.key_dim * element_bytes<T>;
  const int64_t value_bytes = static_cast<int64_t>(head) * part.value_dim * element_bytes<T>;
  constexpr int R = Simd::row_block;
  for (int c = tile.begin & ~3; c < tile.end; c += 4) {
    // The next tile's rows of this head, while this one's are computed on.
    for (int n = c; next && n < c + 4; ++n) {
      if (n >= next->begin && n < next->end) {
        prefetch(next->keys[n] + key_bytes, part.key_dim * element_bytes<T>);
        prefetch(next->values[n] + value_bytes, part.value_dim * element_bytes<T>);
      }
    }
    int i = 0;
    for (; i + R <= chunk.count; i += R) {
      score_rows<T, R>(part, tile, chunk, i, c, key_bytes);
    }
    if (R > 2 && i + 2 <= chunk.count) {
      score_rows<T, 2>(part, tile, chunk, i, c, key_bytes);
      i += 2;
    }
    for (; i < chunk.count; ++i) {
      score_rows<T, 1>(part, tile, chunk, i, c, key_bytes);
    }
  }
  for (int i = 0; i < chunk.count; ++i) {
    weigh_scores(part, chunk, i);
  }
  int i = 0;
  for (; i + R <= chunk.count; i += R) {
    weigh_values<T, R>(part, tile, chunk, i, value_bytes);
  }
  if (R > 2 && i + 2 <= chunk.count) {
    weigh_values<T, 2>(part, tile, chunk, i, value_bytes);
    i += 2;
  }
  for (; i < chunk.count; ++i) {
    weigh_values<T, 1>(part, tile, chunk, i, value_bytes);
  }
}

template <ElementType T>
void attend_part(const AttentionPart& part) {
  const int group = part.num_q_heads / part.num_kv_heads;
  for (int row = 0; row < part.rows; ++row) {
    for (int h = part.kv_head_begin * group; h < part.kv_head_end * group; ++h) {
      const int64_t index = static_cast<int64_t>(row) * part.num_q_heads + h;
      part.maxima[index] = no_maximum;
      part.sums[index] = 0.0f;
      memset(part.outputs + index * part.value_stride, 0, sizeof(float) * part.value_stride);
    }
  }
  // What the rows see together.
  int64_t low = part.window > 0 ? part.first_position - part.window + 1 : 0;
  int64_t high = part.first_position + part.rows;
  low = low > part.begin ? low : part.begin;
  high = high < part.end ? high : part.end;
  if (low >= high) {
    return;
  }
  Tile tiles[2];
  Chunk chunk;
  int64_t start = low - low % tile_positions;
  locate_tile<T>(part, start, low, high, tiles[0]);
  for (int current = 0; start < high; start += tile_positions, current ^= 1) {
    const Tile& tile = tiles[current];
    Tile* next = start + tile_positions < high ? &tiles[current ^ 1] : nullptr;
    if (next) {
      locate_tile<T>(part, start + tile_positions, low, high, *next);
    }
    for (int head = part.kv_head_begin; head < part.kv_head_end; ++head) {
      for (int from = 0; from < part.rows * group; from += chunk_rows) {
        gather_chunk(part, tile, start, head, from, chunk);
        attend_chunk<T>(part, tile, from == 0 ? next : nullptr, head, chunk);
      }
    }
  }
}

void attend(const AttentionPart& part) {
  switch (part.pool_type) {
    case ElementType::float32:
      attend_part<ElementType::float32>(part);
      break;
    case ElementType::bfloat16:
      attend_part<ElementType::bfloat16>(part);
      break;
    case ElementType::float16:
      attend_part<ElementType::float16>(part);
      break;
  }
}

uint32_t read_stream(const void* data, size_t bytes) {
  const float* p = static_cast<const float*>(data);
  Vec sums[8];
  for (Vec& sum : sums) {
    sum = Simd::zero();
  }
  for (size_t i = 0; i < bytes / sizeof(float); i += 8 * Simd::lanes) {
    for (int j = 0; j < 8; ++j) {
      sums[j] = Simd::add(sums[j], Simd::load(p + i + j * Simd::lanes));
    }
  }
  for (int j = 1; j < 8; ++j) {
    sums[0] = Simd::add(sums[0], sums[j]);
  }
  const float total = Simd::sum(sums[0]);
  uint32_t bits;
  memcpy(&bits, &total, sizeof(bits));
  return bits;
}

} // namespace
