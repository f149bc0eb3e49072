#include "memory.h"

#include <sys/mman.h>

#include <cstring>
#include <new>
#include <stdexcept>

namespace emulator {

Arena::Arena() {
  void* place = mmap(nullptr, slots * slot_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) {
    throw std::bad_alloc();
  }
  base_ = static_cast<char*>(place);
}

Arena::~Arena() {
  munmap(base_, slots * slot_bytes);
}

int Arena::add(std::string name, size_t bytes, Mode mode) {
  if (buffers_.size() == slots || bytes > margin_bytes) {
    throw std::runtime_error("the emulator holds 128 buffers of up to 16 MB");
  }
  Buffer buffer;
  buffer.name = std::move(name);
  buffer.mode = mode;
  buffer.bytes = bytes;
  buffer.data = base_ + buffers_.size() * slot_bytes + margin_bytes;
  std::memset(buffer.data, 0xFF, bytes); // NaN in every float
  if (mode != Mode::read_only) {
    buffer.cells.resize(bytes);
  }
  buffers_.push_back(std::move(buffer));
  return static_cast<int>(buffers_.size()) - 1;
}

void Arena::clear() {
  for (auto& buffer : buffers_) {
    madvise(base_ + (&buffer - buffers_.data()) * slot_bytes, slot_bytes, MADV_DONTNEED);
  }
  buffers_.clear();
}

} // namespace emulator
