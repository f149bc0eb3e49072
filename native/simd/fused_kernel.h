#pragma once

// The fused ops' rows in terms of the vector type that the including file chose; after
// attention_kernel.h, and by its rules.

#include "simd/fused.h"

namespace {

using mlxrt::kernels::AddNormRow;
using mlxrt::kernels::GateRow;
using mlxrt::kernels::NormRopeRow;
using mlxrt::kernels::padded_floats;

template <ElementType T>
inline void store_elements(char* p, Vec x) {
  if constexpr (T == ElementType::float32) {
    Simd::store(reinterpret_cast<float*>(p), x);
  } else if constexpr (T == ElementType::bfloat16) {
    Simd::store_bfloat16(p, x);
  } else {
    Simd::store_float16(p, x);
  }
}

template <ElementType T>
inline Vec rounded(Vec x) {
  if constexpr (T == ElementType::float32) {
    return x;
  } else if constexpr (T == ElementType::bfloat16) {
    return Simd::round_bfloat16(x);
  } else {
    return Simd::round_float16(x);
  }
}

// The first `count` elements at p, zeros behind them; count < lanes.
template <ElementType T>
inline Vec load_some(const char* p, int count) {
  alignas(64) char elements[4 * Simd::lanes] = {};
  memcpy(elements, p, count * element_bytes<T>);
  return load_elements<T>(elements);
}

template <ElementType T>
inline void store_some(char* p, Vec x, int count) {
  alignas(64) char elements[4 * Simd::lanes];
  store_elements<T>(elements, x);
  memcpy(p, elements, count * element_bytes<T>);
}

// body(load, store, at) over [0, count): whole vectors, then what is left of one.
template <ElementType T, class Body>
inline void for_vectors(int count, Body body) {
  int i = 0;
  for (; i + Simd::lanes <= count; i += Simd::lanes) {
    body([](const char* p) { return load_elements<T>(p); },
         [](char* p, Vec x) { store_elements<T>(p, x); }, i * element_bytes<T>);
  }
  if (const int rest = count - i; rest > 0) {
    body([rest](const char* p) { return load_some<T>(p, rest); },
         [rest](char* p, Vec x) { store_some<T>(p, x, rest); }, i * element_bytes<T>);
  }
}

inline float inverse_rms(Vec squares, int size, float eps) {
  return 1.0f / __builtin_sqrtf(Simd::sum(squares) * (1.0f / static_cast<float>(size)) + eps);
}

template <ElementType T>
inline Vec normed(Vec x, Vec factor, Vec weight) {
  return rounded<T>(Simd::mul(rounded<T>(Simd::mul(x, factor)), weight));
}

template <ElementType T>
void load_head(const char* head, int dim, float* to) {
  for_vectors<T>(dim, [&](auto load, auto, int at) {
    Simd::store(to + at / element_bytes<T>, load(head + at));
  });
}

template <ElementType T>
void store_head(const float* head, int dim, char* to) {
  for_vectors<T>(dim, [&](auto, auto store, int at) {
    store(to + at, Simd::load(head + at / element_bytes<T>));
  });
}

// The head's padding is zero up to the next vector, as load_head leaves it.
template <ElementType T>
void norm_head(float* head, int dim, const float* weight, float eps) {
  Vec squares = Simd::zero();
  for (int i = 0; i < dim; i += Simd::lanes) {
    const Vec x = Simd::load(head + i);
    squares = Simd::add(squares, Simd::mul(x, x));
  }
  const Vec factor = Simd::broadcast(inverse_rms(squares, dim, eps));
  for (int i = 0; i < dim; i += Simd::lanes) {
    Simd::store(head + i, normed<T>(Simd::load(head + i), factor, Simd::load(weight + i)));
  }
}

// out1 = x1 cos - x2 sin, out2 = x1 sin + x2 cos, over whole vectors: what is written behind `half`
// is garbage, and out1 is done before out2.
template <ElementType T>
void rotate(const float* x1, const float* x2, const NormRopeRow& row, float* out1, float* out2) {
  for (int i = 0; i < row.half; i += Simd::lanes) {
    const Vec c = Simd::load(row.cosines + i);
    const Vec s = Simd::load(row.sines + i);
    Simd::store(out1 + i, rounded<T>(Simd::sub(rounded<T>(Simd::mul(Simd::load(x1 + i), c)),
                                               rounded<T>(Simd::mul(Simd::load(x2 + i), s)))));
  }
  for (int i = 0; i < row.half; i += Simd::lanes) {
    const Vec c = Simd::load(row.cosines + i);
    const Vec s = Simd::load(row.sines + i);
    Simd::store(out2 + i, rounded<T>(Simd::add(rounded<T>(Simd::mul(Simd::load(x1 + i), s)),
                                               rounded<T>(Simd::mul(Simd::load(x2 + i), c)))));
  }
}

template <ElementType T>
void rope_head(const NormRopeRow& row, const float* head, float* out) {
  const int dim = padded_floats(row.head_dim);
  if (row.traditional) {
    float* x1 = out + dim;
    float *x2 = x1 + dim, *out1 = x2 + dim, *out2 = out1 + dim;
    for (int i = 0; i < row.half; ++i) {
      x1[i] = head[2 * i];
      x2[i] = head[2 * i + 1];
    }
    for (int i = row.half; i < row.half + Simd::lanes; ++i) {
      x1[i] = x2[i] = 0.0f;
    }
    rotate<T>(x1, x2, row, out1, out2);
    for (int i = 0; i < row.half; ++i) {
      out[2 * i] = out1[i];
      out[2 * i + 1] = out2[i];
    }
  } else {
    rotate<T>(head, head + row.half, row, out, out + row.half);
  }
  memcpy(out + 2 * row.half, head + 2 * row.half, (row.head_dim - 2 * row.half) * sizeof(float));
}

// A head normed and roped, in row.scratch.
template <ElementType T>
const float* finished_head(const NormRopeRow& row, const char* from, const float* weight) {
  float* head = row.scratch;
  float* out = head + padded_floats(row.head_dim);
  load_head<T>(from, row.head_dim, head);
  if (weight) {
    norm_head<T>(head, row.head_dim, weight, row.eps);
  }
  rope_head<T>(row, head, out);
  return out;
}

void store_in_pool(ElementType type, const float* head, int dim, char* to) {
  switch (type) {
    case ElementType::float32:
      return store_head<ElementType::float32>(head, dim, to);
    case ElementType::bfloat16:
      return store_head<ElementType::bfloat16>(head, dim, to);
    case ElementType::float16:
      return store_head<ElementType::float16>(head, dim, to);
  }
}

template <ElementType T>
void norm_rope_of(const NormRopeRow& row) {
  const int64_t bytes = static_cast<int64_t>(row.head_dim) * element_bytes<T>;
  const int64_t pool_bytes =
      static_cast<int64_t>(row.head_dim) * (row.pool_type == ElementType::float32 ? 4 : 2);
  for (int h = 0; h < row.num_q_heads; ++h) {
    store_head<T>(finished_head<T>(row, row.qkv + h * bytes, row.q_norm), row.head_dim,
                  row.queries + h * bytes);
  }
  if (!row.keys) {
    return;
  }
  const char* keys = row.qkv + row.num_q_heads * bytes;
  const char* values = keys + row.num_kv_heads * bytes;
  for (int h = 0; h < row.num_kv_heads; ++h) {
    store_in_pool(row.pool_type, finished_head<T>(row, keys + h * bytes, row.k_norm), row.head_dim,
                  row.keys + h * pool_bytes);
  }
  for (int h = 0; h < row.num_kv_heads; ++h) {
    if (row.pool_type == T) {
      memcpy(row.values + h * pool_bytes, values + h * bytes, bytes);
    } else {
      load_head<T>(values + h * bytes, row.head_dim, row.scratch);
      store_in_pool(row.pool_type, row.scratch, row.head_dim, row.values + h * pool_bytes);
    }
  }
}

void norm_rope(const NormRopeRow& row) {
  switch (row.type) {
    case ElementType::float32:
      return norm_rope_of<ElementType::float32>(row);
    case ElementType::bfloat16:
      return norm_rope_of<ElementType::bfloat16>(row);
    case ElementType::float16:
      return norm_rope_of<ElementType::float16>(row);
  }
}

// Cosine and sine of |x| <= largest_angle. Source: Cephes' sinf and cosf (S. Moshier, public domain),
// in MLX's own form, so that both give the same bits where a fused multiply-add is one.
inline void cosine_and_sine(Vec x, Vec& cosine, Vec& sine) {
  const Vec one = Simd::broadcast(1.0f), two = Simd::broadcast(2.0f);
  const auto halved = [](Vec n) { // floor(n / 2) of an integer
    return Simd::round(Simd::sub(Simd::mul(n, Simd::broadcast(0.5f)), Simd::broadcast(0.25f)));
  };
  const Vec n = Simd::round(Simd::mul(Simd::mul(x, Simd::broadcast(1.27323954473516f)),
                                      Simd::broadcast(0.5f)));
  const Vec y = Simd::mul(n, two);
  Vec r = Simd::fma(y, Simd::broadcast(-0.78515625f), x);
  r = Simd::fma(y, Simd::broadcast(-2.4187564849853515625e-4f), r);
  r = Simd::fma(y, Simd::broadcast(-3.77489497744594108e-8f), r);
  const Vec z = Simd::mul(r, r);
  Vec c = Simd::fma(z, Simd::broadcast(2.443315711809948e-5f), Simd::broadcast(-1.388731625493765e-3f));
  Vec s = Simd::fma(z, Simd::broadcast(-1.9515295891e-4f), Simd::broadcast(8.3321608736e-3f));
  c = Simd::fma(c, z, Simd::broadcast(4.166664568298827e-2f));
  s = Simd::fma(s, z, Simd::broadcast(-1.6666654611e-1f));
  c = Simd::mul(Simd::mul(c, z), z);
  s = Simd::fma(r, Simd::mul(s, z), r);
  c = Simd::add(Simd::fma(z, Simd::broadcast(-0.5f), c), one);
  // The quadrant n mod 4 by its bits: odd swaps, the second bit changes signs.
  const Vec quotient = halved(n);
  const Vec odd = Simd::sub(n, Simd::mul(quotient, two));
  const Vec even = Simd::sub(one, odd);
  const Vec second = Simd::sub(quotient, Simd::mul(halved(quotient), two));
  const Vec sign = Simd::sub(one, Simd::mul(two, second));
  const Vec swap = Simd::sub(even, odd);
  sine = Simd::mul(sign, Simd::add(Simd::mul(odd, c), Simd::mul(even, s)));
  cosine = Simd::mul(Simd::mul(sign, swap), Simd::add(Simd::mul(odd, s), Simd::mul(even, c)));
}

template <ElementType T>
void angles_of(const float* inverse_frequencies, float position, int half, float* cosines,
               float* sines) {
  for (int i = 0; i < half; i += Simd::lanes) {
    Vec c, s;
    cosine_and_sine(Simd::mul(Simd::broadcast(position), Simd::load(inverse_frequencies + i)), c, s);
    Simd::store(cosines + i, rounded<T>(c));
    Simd::store(sines + i, rounded<T>(s));
  }
}

void angles(ElementType type, const float* inverse_frequencies, float position, int half,
            float* cosines, float* sines) {
  switch (type) {
    case ElementType::float32:
      return angles_of<ElementType::float32>(inverse_frequencies, position, half, cosines, sines);
    case ElementType::bfloat16:
      return angles_of<ElementType::bfloat16>(inverse_frequencies, position, half, cosines, sines);
    case ElementType::float16:
      return angles_of<ElementType::float16>(inverse_frequencies, position, half, cosines, sines);
  }
}

template <ElementType T>
void add_norm_of(const AddNormRow& row) {
  Vec squares = Simd::zero();
  for_vectors<T>(row.size, [&](auto load, auto store, int at) {
    const Vec total = rounded<T>(Simd::add(load(row.x + at), load(row.residual + at)));
    squares = Simd::add(squares, Simd::mul(total, total));
    store(row.total + at, total);
  });
  const Vec factor = Simd::broadcast(inverse_rms(squares, row.size, row.eps));
  for_vectors<T>(row.size, [&](auto load, auto store, int at) {
    store(row.normed + at, normed<T>(load(row.total + at), factor, load(row.weight + at)));
  });
}

void add_norm(const AddNormRow& row) {
  switch (row.type) {
    case ElementType::float32:
      return add_norm_of<ElementType::float32>(row);
    case ElementType::bfloat16:
      return add_norm_of<ElementType::bfloat16>(row);
    case ElementType::float16:
      return add_norm_of<ElementType::float16>(row);
  }
}

// MLX's: the power of e and the sigmoid are rounded, what is between them is not.
template <ElementType T>
inline Vec sigmoid(Vec x) {
  const Vec one = Simd::broadcast(1.0f);
  const Vec magnitude = Simd::max(x, Simd::sub(Simd::zero(), x));
  Vec power = exp2_of(Simd::mul(magnitude, Simd::broadcast(1.442695f)));
  power = Simd::where_negative(Simd::sub(Simd::broadcast(88.0f), magnitude),
                               Simd::broadcast(__builtin_inff()), power);
  const Vec y = Simd::div(one, Simd::add(one, rounded<T>(power)));
  return rounded<T>(Simd::where_negative(x, y, Simd::sub(one, y)));
}

template <ElementType T>
void gate_of(const GateRow& row) {
  for_vectors<T>(row.size, [&](auto load, auto store, int at) {
    const Vec x = load(row.gate + at);
    store(row.out + at, Simd::mul(rounded<T>(Simd::mul(x, sigmoid<T>(x))), load(row.up + at)));
  });
}

void gate(const GateRow& row) {
  switch (row.type) {
    case ElementType::float32:
      return gate_of<ElementType::float32>(row);
    case ElementType::bfloat16:
      return gate_of<ElementType::bfloat16>(row);
    case ElementType::float16:
      return gate_of<ElementType::float16>(row);
  }
}

} // namespace
