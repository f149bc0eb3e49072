// The memory that kernels may touch, with a shadow that knows who touched what and when.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

// One access, as far as ordering is concerned.
struct Access {
  uint32_t launch = 0; // 0: none
  uint32_t group = 0;
  uint32_t thread = 0;
  uint32_t threadgroup_epoch = 0;
  uint32_t simdgroup_epoch = 0;
};

// What happened to one byte. The readers kept are the last one, and the last ones that differ from
// it in lane, in simd-group and in threadgroup: whoever a later writer may race with is among them.
struct Cell {
  Access write;
  Access read[4];
  bool written = false;
};

enum class Mode : int { read_only = 0, output = 1, read_write = 2 };

// A piece of memory in the middle of a slot of its own: what overruns it by less than 16 MB, on
// either side, hits nothing else.
struct Buffer {
  std::string name;
  Mode mode = Mode::read_only;
  size_t bytes = 0;
  char* data = nullptr;
  std::vector<Cell> cells; // empty where nothing can be written
};

class Arena {
 public:
  Arena();
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Adds a buffer and returns its index. Throws std::runtime_error beyond 128 buffers or 16 MB.
  int add(std::string name, size_t bytes, Mode mode);
  void clear();

  bool holds(const void* address) const {
    auto place = static_cast<const char*>(address);
    return place >= base_ && place < base_ + slot_bytes * slots;
  }
  // The buffer whose slot holds an address, or nullptr.
  Buffer* at(const void* address) {
    auto slot = static_cast<size_t>(static_cast<const char*>(address) - base_) / slot_bytes;
    return slot < buffers_.size() ? &buffers_[slot] : nullptr;
  }
  Buffer& operator[](int index) {
    return buffers_.at(index);
  }

 private:
  static constexpr size_t slots = 128;
  static constexpr size_t slot_bytes = size_t{48} << 20;
  static constexpr size_t margin_bytes = size_t{16} << 20;

  char* base_;
  std::vector<Buffer> buffers_;
};

} // namespace emulator
