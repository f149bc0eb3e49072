#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "mlx/version.h"
#include "mlxrt/bandwidth.h"
#include "mlxrt/copy_blocks.h"
#include "mlxrt/counters.h"
#include "mlxrt/hold_pools.h"
#include "mlxrt/kv_write.h"
#include "mlxrt/norm_rope_write.h"
#include "mlxrt/paged_attention.h"
#include "mlxrt/row_ops.h"
#include "mlxrt/sample.h"
#include "mlxrt/thread_pool.h"
#include "simd/dispatch.h"
#include "src/gpu_shape.h"

#ifdef MLXRT_HAS_TRANSFERS
#include "cuda/transfer.h"
#endif

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;

#define MLXRT_TEXT_OF(x) #x
#define MLXRT_TEXT(x) MLXRT_TEXT_OF(x)

namespace {

constexpr const char* built_mlx_version = MLXRT_TEXT(MLX_VERSION_MAJOR) "." MLXRT_TEXT(
    MLX_VERSION_MINOR) "." MLXRT_TEXT(MLX_VERSION_PATCH);

// MLX's C++ ABI changes with patch releases; another version may load and then read wrong offsets.
void check_mlx_version() {
  if (std::string(mx::version()) != built_mlx_version) {
    const std::string text = std::string("mlxrt was built against MLX ") + built_mlx_version +
        " but libmlx " + mx::version() + " is loaded; install mlx==" + built_mlx_version +
        " with its backend of the same version (mlx-cpu, mlx-metal or mlx-cuda-13), " +
        "or rebuild mlxrt against the installed one";
    throw nb::import_error(text.c_str());
  }
}

nb::dict counters() {
  nb::dict counts;
  const auto values = mlxrt::evaluation_counts();
  for (size_t i = 0; i < values.size(); ++i) {
    counts[mlxrt::op_names[i]] = values[i];
  }
  return counts;
}

#ifdef MLXRT_HAS_TRANSFERS

using Numbers = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

std::vector<mx::array> upload(const std::vector<Numbers>& arrays) {
  std::vector<mlxrt::cuda::HostNumbers> numbers;
  for (const auto& array : arrays) {
    auto dtype = mx::int32;
    if (array.dtype() == nb::dtype<int64_t>()) {
      dtype = mx::int64;
    } else if (array.dtype() == nb::dtype<float>()) {
      dtype = mx::float32;
    } else if (array.dtype() != nb::dtype<int32_t>()) {
      throw std::invalid_argument("[upload] arrays must be int32, int64 or float32");
    }
    mx::Shape shape;
    for (size_t axis = 0; axis < array.ndim(); ++axis) {
      shape.push_back(static_cast<mx::ShapeElem>(array.shape(axis)));
    }
    numbers.push_back({array.data(), std::move(shape), dtype});
  }
  return mlxrt::cuda::upload(numbers);
}

#endif

} // namespace

// Docstrings stand in mlxrt/kernels/_native.pyi.
NB_MODULE(MLXRT_MODULE, m) {
  check_mlx_version();
  nb::module_::import_("mlx.core");
  m.attr("built_mlx_version") = built_mlx_version;

  // The call fails if this nanobind and MLX's do not share their types; nothing else would tell.
  m.def("probe", [](const mx::array& a) { return a; }, "a"_a);

  m.def("kv_write", &mlxrt::kv_write, "k_pool"_a, "v_pool"_a, "keys"_a, "values"_a, "slots"_a,
        nb::kw_only(), "stream"_a = nb::none());
  m.def("copy_blocks", &mlxrt::copy_blocks, "pools"_a, "sources"_a, "destinations"_a,
        nb::kw_only(), "stream"_a = nb::none());
  m.def("hold_pools", &mlxrt::hold_pools, "arrays"_a, "pools"_a, nb::kw_only(),
        "stream"_a = nb::none());
  m.def("paged_attention",
        [](const mx::array& q, const mx::array& k_pool, const mx::array& v_pool,
           const mx::array& block_tables, const mx::array& query_start,
           const mx::array& context_len, float scale, int window, float softcap,
           const std::optional<mx::array>& sinks, int most_rows, int64_t positions,
           mx::StreamOrDevice stream) {
          return mlxrt::paged_attention(q, k_pool, v_pool, block_tables, query_start, context_len,
                                        scale, window, softcap, sinks, {most_rows, positions},
                                        stream);
        },
        "q"_a, "k_pool"_a, "v_pool"_a, "block_tables"_a, "query_start"_a, "context_len"_a,
        nb::kw_only(), "scale"_a, "window"_a = 0, "softcap"_a = 0.0f, "sinks"_a = nb::none(),
        "most_rows"_a = 0, "positions"_a = 0, "stream"_a = nb::none());
  m.def("norm_rope_write",
        [](const mx::array& qkv, const std::optional<mx::array>& q_norm,
           const std::optional<mx::array>& k_norm, float eps, const mx::array& positions,
           const mx::array& inverse_frequencies, float scale, bool traditional,
           const mx::array& keys, const mx::array& values, const mx::array& slots,
           int num_q_heads, int num_kv_heads, mx::StreamOrDevice stream) {
          return mlxrt::norm_rope_write(qkv, q_norm, k_norm, eps, positions, inverse_frequencies,
                                        scale, traditional, keys, values, slots,
                                        {num_q_heads, num_kv_heads}, stream);
        },
        "qkv"_a, "q_norm"_a.none(), "k_norm"_a.none(), "eps"_a, "positions"_a,
        "inverse_frequencies"_a, "scale"_a, "traditional"_a, "keys"_a, "values"_a, "slots"_a,
        "num_q_heads"_a, "num_kv_heads"_a, nb::kw_only(), "stream"_a = nb::none());
  m.def("add_rms_norm", &mlxrt::add_rms_norm, "x"_a, "residual"_a, "weight"_a, "eps"_a,
        nb::kw_only(), "stream"_a = nb::none());
  m.def("swiglu", &mlxrt::swiglu, "gate_up"_a, nb::kw_only(), "stream"_a = nb::none());
  m.def("sample",
        [](const mx::array& logits, const mx::array& rules, mx::StreamOrDevice stream) {
          auto sampled = mlxrt::sample(logits, rules, stream);
          return nb::make_tuple(sampled[0], sampled[1], sampled[2]);
        },
        "logits"_a, "rules"_a, nb::kw_only(), "stream"_a = nb::none());
#ifdef MLXRT_HAS_TRANSFERS
  m.def("upload", &upload, "arrays"_a);
  m.def("to_host", &mlxrt::cuda::to_host, "a"_a);
#endif
  m.def("gpu_refusal", &mlxrt::gpu::refusal, "q"_a, "k_pool"_a, "v_pool"_a);

  m.def("counters", &counters);
  m.def("reset_counters", &mlxrt::reset_evaluation_counts);
  m.def("num_threads", &mlxrt::num_threads);
  m.def("set_num_threads", &mlxrt::set_num_threads, "count"_a);
  m.def("simd_level", &mlxrt::kernels::simd_level);
  m.def("simd_levels", &mlxrt::kernels::simd_levels);
  m.def("set_simd_level", &mlxrt::kernels::set_simd_level, "level"_a);
  m.def("read_bandwidth",
        [](double gigabytes, int repeats, std::optional<int> threads) {
          return mlxrt::read_bandwidth(gigabytes, repeats, threads.value_or(mlxrt::num_threads()));
        },
        "gigabytes"_a = 0.5, "repeats"_a = 5, "threads"_a = nb::none(),
        nb::call_guard<nb::gil_scoped_release>());
  m.def("data_address",
        [](const mx::array& a) {
          mx::array evaluated = a;
          evaluated.eval();
          return reinterpret_cast<uintptr_t>(evaluated.data<char>());
        },
        "a"_a);
}
