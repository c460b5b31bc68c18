// Whatever bytes a segment holds, reading it ends, within its memory limits, without a crash.
#include <google/protobuf/stubs/logging.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "tycho/trace/run_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static google::protobuf::LogHandler* const log = google::protobuf::SetLogHandler(nullptr);
  (void)log;
  static const int file = ::memfd_create("tycho-fuzz", MFD_CLOEXEC);
  static const std::string path = "/proc/self/fd/" + std::to_string(file);
  if (::ftruncate(file, 0) != 0 || ::pwrite(file, data, size, 0) != static_cast<ssize_t>(size)) {
    std::abort();
  }
  auto reader = tycho::trace::RunReader::open(path);
  if (!reader.ok()) return 0;
  tycho::trace::MessageHandler nobody;
  tycho::trace::ReadOptions options;
  if (size % 4 == 0) {  // The step index, where there is one.
    options.from_step = 3;
    options.to_step = 5;
  }
  if (!reader.value()->read(nobody, options).ok()) return 0;
  (void)tycho::trace::losses(reader.value()->segments(), reader.value()->skipped());
  return 0;
}
