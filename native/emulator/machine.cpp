// The machine: runs the threads of a threadgroup as fibers and watches every access they make. The
// accesses come in by the hooks that -fsanitize=thread plants; this file is built without it.

#include "machine.h"

#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>

#include "fibers.h"
#include "memory.h"

namespace emulator {
namespace {

constexpr unsigned threads_max = 1024;
constexpr unsigned simdgroups_max = threads_max / lanes;

enum Kind { device_kind = 0, threadgroup_kind = 1 };

// What a thread waits for; the line is 0 while it does not.
struct Wait {
  const char* operation = nullptr;
  unsigned operand = 0;
  int line = 0;
  bool of_threadgroup = false;
};

struct Thread {
  Context context;
  Ids ids;
  Wait wait;
  bool done = false;
  uint32_t threadgroup_epoch[2];
  uint32_t simdgroup_epoch[2];
};

struct Exchange {
  unsigned char value[2][lanes][lane_value_bytes];
  unsigned rounds[lanes]; // exchanges that each lane has begun
};

struct Machine {
  Arena arena;
  std::unique_ptr<Stacks> stacks;
  Context main;
  Thread threads[threads_max];
  Exchange exchanges[simdgroups_max];
  unsigned thread_count = 0;
  unsigned current = 0;
  uint32_t launch = 0;
  uint32_t group = 0;
  bool running = false;
  Entry entry = nullptr;
  void* const* buffers = nullptr;
  int threadgroup_buffer = -1;
  std::string report;
  const void* site = nullptr;
  uint64_t accesses = 0;
};

Machine& machine() {
  static auto* one = new Machine();
  return *one;
}

Thread& self() {
  return machine().threads[machine().current];
}

void leave_fiber() {
  auto& m = machine();
  Context::change(m.threads[m.current].context, m.main);
}

[[noreturn]] void stop(const void* site, const char* format, ...) {
  auto& m = machine();
  char text[600];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  char where[200];
  const auto& p = self().ids.threadgroup_position_in_grid;
  snprintf(where, sizeof where, " [thread %u of threadgroup (%u, %u, %u)]", m.current, p[0], p[1],
           p[2]);
  m.report = std::string(text) + where;
  m.site = site;
  m.running = false;
  for (;;) {
    leave_fiber(); // never resumed
  }
}

void run_fiber() {
  auto& m = machine();
  auto& thread = self();
  void* shared = m.threadgroup_buffer < 0 ? nullptr : m.arena[m.threadgroup_buffer].data;
  m.entry(m.buffers, shared, thread.ids);
  thread.done = true;
  for (;;) {
    leave_fiber();
  }
}

// Waits until everybody of the threadgroup, or simd-group, waits for the same.
void wait_for(const char* operation, unsigned operand, int line, bool of_threadgroup) {
  auto& m = machine();
  const unsigned first = of_threadgroup ? 0 : m.current / lanes * lanes;
  const unsigned end = of_threadgroup ? m.thread_count : first + lanes;
  if (end > m.thread_count) {
    stop(nullptr, "%s at line %d in a simd-group of fewer than 32 threads", operation, line);
  }
  self().wait = {operation, operand, line, of_threadgroup};
  bool all = true;
  for (unsigned t = first; t < end; ++t) {
    const auto& other = m.threads[t].wait;
    if (!other.line || (t / lanes != m.current / lanes && !other.of_threadgroup)) {
      all = false;
    } else if (other.line != line || std::strcmp(other.operation, operation) != 0) {
      stop(nullptr, "%s at line %d while thread %u is at %s, line %d: they must all be at one",
           operation, line, t, other.operation, other.line);
    } else if (other.operand != operand) {
      stop(nullptr, "%s at line %d with operand %u while thread %u has %u", operation, line, operand,
           t, other.operand);
    }
  }
  if (all) {
    for (unsigned t = first; t < end; ++t) {
      m.threads[t].wait.line = 0;
    }
    return;
  }
  leave_fiber();
}

bool ordered(const Access& earlier, Kind kind) {
  const auto& m = machine();
  const auto& thread = m.threads[m.current];
  if (!earlier.launch || earlier.launch != m.launch) {
    return true;
  }
  if (earlier.group != m.group) {
    return false;
  }
  if (earlier.thread == m.current ||
      earlier.threadgroup_epoch < thread.threadgroup_epoch[kind]) {
    return true;
  }
  return earlier.thread / lanes == m.current / lanes &&
      earlier.simdgroup_epoch < thread.simdgroup_epoch[kind];
}

void keep_reader(Cell& cell, const Access& now) {
  const Access old = cell.read[0];
  cell.read[0] = now;
  if (!old.launch || (old.group == now.group && old.thread == now.thread)) {
    return;
  }
  if (old.launch != now.launch) {
    cell.read[1] = cell.read[2] = cell.read[3] = {};
  } else if (old.group != now.group) {
    cell.read[3] = old;
  } else {
    cell.read[old.thread / lanes == now.thread / lanes ? 1 : 2] = old;
  }
}

void race(const void* site, const Buffer& buffer, size_t offset, const char* now, const char* then,
          const Access& other) {
  stop(site, "race: %s of byte %zu of %s while %s by thread %u of %s is not ordered before it", now,
       offset, buffer.name.c_str(), then, other.thread,
       other.group == machine().group ? "the same threadgroup" : "another threadgroup");
}

void watch(Buffer& buffer, size_t offset, size_t size, bool write, const void* site) {
  auto& m = machine();
  const Kind kind = m.threadgroup_buffer >= 0 && &buffer == &m.arena[m.threadgroup_buffer]
      ? threadgroup_kind
      : device_kind;
  const auto& thread = self();
  const Access now{m.launch, m.group, m.current, thread.threadgroup_epoch[kind],
                   thread.simdgroup_epoch[kind]};
  for (size_t i = offset; i < offset + size; ++i) {
    Cell& cell = buffer.cells[i];
    if (!ordered(cell.write, kind)) {
      race(site, buffer, i, write ? "write" : "read", "a write", cell.write);
    }
    if (!write) {
      if (!cell.written) {
        stop(site, "read of byte %zu of %s, which nothing has written", i, buffer.name.c_str());
      }
      keep_reader(cell, now);
      continue;
    }
    for (const auto& reader : cell.read) {
      if (!ordered(reader, kind)) {
        race(site, buffer, i, "write", "a read", reader);
      }
    }
    cell.write = now;
    cell.written = true;
  }
}

// Neither a buffer nor the thread's own stack: constants of the program may be read, no more.
void outside(const void* address, bool write, const void* site) {
  Dl_info target, code;
  const bool constant = !write && dladdr(address, &target) && dladdr(site, &code) &&
      target.dli_fbase == code.dli_fbase;
  if (!constant) {
    stop(site, "%s outside of every buffer", write ? "write" : "read");
  }
}

void access(const void* address, size_t size, bool write, const void* site) {
  auto& m = machine();
  if (!m.running) {
    return;
  }
  ++m.accesses;
  const auto* place = static_cast<const char*>(address);
  const char* stack = m.stacks->of(m.current);
  if (place >= stack && place < stack + stack_bytes) {
    return;
  }
  if (!m.arena.holds(place)) {
    return outside(address, write, site);
  }
  const char* what = write ? "write" : "read";
  Buffer* buffer = m.arena.at(place);
  if (!buffer) {
    stop(site, "%s outside of every buffer", what);
  }
  const auto offset = place - buffer->data;
  if (offset < 0 || offset + size > buffer->bytes) {
    stop(site, "%s of %zu bytes at offset %td of %s, which has %zu", what, size, offset,
         buffer->name.c_str(), buffer->bytes);
  }
  if (size > 1 && reinterpret_cast<uintptr_t>(place) % (size > 16 ? 4 : size)) {
    stop(site, "%s of %zu bytes at offset %td of %s is not aligned", what, size, offset,
         buffer->name.c_str());
  }
  if (write && buffer->mode == Mode::read_only) {
    stop(site, "write to %s, which is an input", buffer->name.c_str());
  }
  if (!buffer->cells.empty()) {
    watch(*buffer, offset, size, write, site);
  }
}

} // namespace

void threadgroup_wait(unsigned flags, int line) {
  auto& thread = self();
  wait_for("threadgroup_barrier", flags, line, true);
  thread.threadgroup_epoch[device_kind] += (flags & memory_device) != 0;
  thread.threadgroup_epoch[threadgroup_kind] += (flags & memory_threadgroup) != 0;
}

void simdgroup_wait(unsigned flags, int line) {
  auto& thread = self();
  wait_for("simdgroup_barrier", flags, line, false);
  thread.simdgroup_epoch[device_kind] += (flags & memory_device) != 0;
  thread.simdgroup_epoch[threadgroup_kind] += (flags & memory_threadgroup) != 0;
}

void simd_exchange(const char* operation, unsigned operand, int line, const void* value,
                   unsigned bytes, unsigned char (*all)[lane_value_bytes]) {
  auto& m = machine();
  const unsigned simdgroup = m.current / lanes;
  auto& exchange = m.exchanges[simdgroup];
  // A lane can't be two exchanges ahead of another: two places are enough.
  const unsigned place = exchange.rounds[lane_index()]++ % 2;
  std::memcpy(exchange.value[place][lane_index()], value, bytes);
  wait_for(operation, operand, line, false);
  std::memcpy(all, exchange.value[place], sizeof exchange.value[place]);
}

unsigned lane_index() {
  return machine().current % lanes;
}

void fault(const char* what) {
  stop(nullptr, "%s", what);
}

} // namespace emulator

#include "launch.inc"
#include "hooks.inc"
