// A fiber: a stack and where it stopped. Switching costs a dozen instructions on x86-64.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <new>

namespace emulator {

constexpr size_t stack_bytes = 256 << 10;

#if defined(__x86_64__)

extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

class Context {
 public:
  void prepare(char* stack, void (*run)()) {
    auto top = reinterpret_cast<uintptr_t>(stack + stack_bytes) & ~uintptr_t{15};
    auto* words = reinterpret_cast<void**>(top);
    *--words = nullptr; // keeps the stack aligned as after a call
    *--words = reinterpret_cast<void*>(run);
    for (int i = 0; i < 6; ++i) {
      *--words = nullptr;
    }
    pointer_ = words;
  }
  static void change(Context& from, Context& to) {
    emulator_switch(&from.pointer_, to.pointer_);
  }

 private:
  void* pointer_ = nullptr;
};

#else

class Context {
 public:
  void prepare(char* stack, void (*run)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = stack_bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, run, 0);
  }
  static void change(Context& from, Context& to) {
    swapcontext(&from.context_, &to.context_);
  }

 private:
  ucontext_t context_;
};

#endif

// Stacks of all threads of a threadgroup, one after another.
class Stacks {
 public:
  explicit Stacks(size_t count) : bytes_(count * stack_bytes) {
    void* place = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED) {
      throw std::bad_alloc();
    }
    base_ = static_cast<char*>(place);
  }
  ~Stacks() {
    munmap(base_, bytes_);
  }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  char* of(size_t index) const {
    return base_ + index * stack_bytes;
  }

 private:
  size_t bytes_;
  char* base_;
};

} // namespace emulator
