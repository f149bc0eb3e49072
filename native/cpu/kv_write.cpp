#include "mlxrt/kv_write.h"

#include <cstring>
#include <stdexcept>

#include "cpu/int_vector.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlxrt/counters.h"

namespace mlxrt {
namespace {

// Rows to scatter into one pool. Rows may be strided: they are often a transposed view.
struct Scatter {
  Scatter(const mx::array& rows, mx::array& pool)
      : from(rows.data<char>()),
        to(pool.data<char>()),
        heads(pool.shape(2)),
        dim(pool.shape(3)),
        item(pool.itemsize()),
        row_stride(rows.strides(0)),
        head_stride(rows.strides(1)),
        dim_stride(rows.strides(2)) {}

  void write(int64_t row, int64_t slot) const {
    const char* source = from + row * row_stride * item;
    char* target = to + slot * heads * dim * item;
    if (dim_stride == 1 && (head_stride == dim || heads == 1)) {
      std::memcpy(target, source, heads * dim * item);
      return;
    }
    for (int64_t h = 0; h < heads; ++h, target += dim * item) {
      const char* head = source + h * head_stride * item;
      if (dim_stride == 1) {
        std::memcpy(target, head, dim * item);
        continue;
      }
      for (int64_t d = 0; d < dim; ++d) {
        std::memcpy(target + d * item, head + d * dim_stride * item, item);
      }
    }
  }

  const char* from;
  char* to;
  int64_t heads, dim, item, row_stride, head_stride, dim_stride;
};

} // namespace

void KVWrite::eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  for (int i = 0; i < 2; ++i) {
    if (!inputs[i].flags().row_contiguous) {
      throw std::runtime_error(
          std::string("[kv_write] ") + (i ? "v_pool" : "k_pool") + " must be row-contiguous");
    }
    // The same data: the write is in place however many handles and queued readers the pool has.
    outputs[i].copy_shared_buffer(inputs[i]);
  }
  count_evaluation(Op::kv_write);
  if (outputs[0].size() == 0 || inputs[4].size() == 0) {
    return;
  }
  auto& encoder = mx::cpu::get_command_encoder(stream());
  encoder.dispatch([keys = Scatter(inputs[2], outputs[0]),
                    values = Scatter(inputs[3], outputs[1]),
                    slots = cpu::IntVector<int64_t>(inputs[4]),
                    slot_count = int64_t{inputs[0].shape(0)} * inputs[0].shape(1)] {
    for (int64_t i = 0; i < slots.size; ++i) {
      if (slots[i] >= slot_count) {
        throw std::out_of_range(
            "[kv_write] slots[" + std::to_string(i) + "] is " + std::to_string(slots[i]) +
            ", the pool has " + std::to_string(slot_count) + " slots; nothing was written");
      }
    }
    for (int64_t i = 0; i < slots.size; ++i) {
      if (slots[i] >= 0) {
        keys.write(i, slots[i]);
        values.write(i, slots[i]);
      }
    }
  });
}

} // namespace mlxrt
