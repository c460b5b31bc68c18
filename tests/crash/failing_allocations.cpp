#include "tests/crash/failing_allocations.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <malloc.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

namespace failing {

namespace {

constexpr int kNobody = -1;
thread_local int current = kNobody;
thread_local bool looking = false;  // at the stack, which may allocate
std::atomic<bool> armed{false};
std::atomic<bool> failed{false};
std::atomic<int> wanted_phase{kNobody};
std::atomic<int64_t> wanted{-1};
std::array<std::atomic<int64_t>, kPhases> counts;

/// Whether an address lies in a function of Tycho's; known addresses are kept.
bool is_tycho(void* address) {
  struct Known {
    std::atomic<void*> address{nullptr};
    std::atomic<bool> tycho{false};
  };
  static std::array<Known, 1 << 14> table;
  const auto slot = (reinterpret_cast<uintptr_t>(address) >> 1) * 0x9e3779b97f4a7c15ULL >> 50;
  Known& known = table[slot];
  if (known.address.load() == address) return known.tycho.load();
  Dl_info info{};
  const bool found = dladdr(address, &info) != 0 && info.dli_sname != nullptr;
  // Templates of the standard library over Tycho's types are Tycho's too.
  const bool tycho = found && std::strstr(info.dli_sname, "5tycho") != nullptr;
  known.tycho = tycho;
  known.address = address;
  return tycho;
}

/// Outside of a session's calls: whether a hook of Tycho's runs, or its thread.
bool tycho_is_on_the_stack() {
  if (looking) return false;
  looking = true;
  std::array<void*, 96> frames;
  const int depth = backtrace(frames.data(), static_cast<int>(frames.size()));
  const bool found = std::any_of(frames.begin(), frames.begin() + depth, is_tycho);
  looking = false;
  return found;
}

/// LibTorch allocates while it destroys a graph, in destructors: a failure there ends any process,
/// with or without Tycho. A graph goes with a tensor, or with the last pointer to one of its nodes.
bool in_a_destructor_of_libtorch() {
  std::array<void*, 96> frames;
  const int depth = backtrace(frames.data(), static_cast<int>(frames.size()));
  bool inner_is_libtorch = false;
  for (int i = 0; i < depth; ++i) {
    Dl_info info{};
    if (dladdr(frames[static_cast<size_t>(i)], &info) == 0) continue;
    const char* symbol = info.dli_sname == nullptr ? "" : info.dli_sname;
    if (std::strstr(symbol, "TensorImplD") != nullptr) return true;
    if (inner_is_libtorch && std::strstr(symbol, "_Sp_counted_base") != nullptr) return true;
    inner_is_libtorch =
        info.dli_fname != nullptr && std::strstr(info.dli_fname, "libtorch") != nullptr;
  }
  return false;
}

thread_local bool is_trainer = false;

/// Counts an allocation; true: it has to fail.
bool fails() {
  if (!armed.load(std::memory_order_relaxed)) return false;
  int phase = current;
  if (phase == kNobody) {
    if (!tycho_is_on_the_stack()) return false;
    phase = is_trainer ? kHooks : kWriter;
  }
  const int64_t number = counts[static_cast<size_t>(phase)].fetch_add(1);
  if (phase != wanted_phase.load() || number != wanted.load()) return false;
  failed = true;
  armed = false;
  const bool spared = in_a_destructor_of_libtorch();
  armed = true;
  if (spared) return false;
  return true;
}

void* allocate(size_t size, size_t alignment) {
  if (fails()) return nullptr;
  size = std::max<size_t>(size, 1);
  return alignment <= alignof(std::max_align_t) ? std::malloc(size) : memalign(alignment, size);
}

void* allocate_or_throw(size_t size, size_t alignment) {
  void* memory = allocate(size, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void this_is_the_trainer() {
  is_trainer = true;
  std::array<void*, 4> frames;
  (void)backtrace(frames.data(), 4);  // its first call loads a library
}

void arm(Phase phase, int64_t number) {
  for (auto& each : counts) each = 0;
  failed = false;
  wanted_phase = phase;
  wanted = number;
  armed = true;
}

bool disarm() {
  armed = false;
  return failed;
}

int64_t count(Phase phase) { return counts[static_cast<size_t>(phase)]; }

Inside::Inside(Phase phase) : before_(current) { current = phase; }
Inside::~Inside() { current = before_; }
void evaluation_begins() {
  if (current == kStep) current = kEvaluate;
}

}  // namespace failing

// When memory runs out while LibTorch's dispatcher boxes the inputs of an operator for an observer,
// the boxed inputs are never released. Such leaks are LibTorch's, and their stacks do not differ
// from those of others.
extern "C" const char* __lsan_default_options() { return "detect_leaks=0"; }  // NOLINT

// LibTorch allocates tensors on the CPU with it.
extern "C" int posix_memalign(void** memory, size_t alignment, size_t size) noexcept {
  *memory = failing::fails() ? nullptr : memalign(alignment, size);
  return *memory == nullptr ? ENOMEM : 0;
}

void* operator new(size_t size) { return failing::allocate_or_throw(size, 0); }
void* operator new[](size_t size) { return failing::allocate_or_throw(size, 0); }
void* operator new(size_t size, std::align_val_t alignment) {
  return failing::allocate_or_throw(size, static_cast<size_t>(alignment));
}
void* operator new[](size_t size, std::align_val_t alignment) {
  return failing::allocate_or_throw(size, static_cast<size_t>(alignment));
}
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return failing::allocate(size, 0);
}
void* operator new[](size_t size, const std::nothrow_t&) noexcept {
  return failing::allocate(size, 0);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
