// Whatever bytes a segment holds, reading it ends, within its memory limits, without a crash.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "tycho/trace/run_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string path = (std::filesystem::temp_directory_path() /
                                   ("tycho-fuzz-" + std::to_string(::getpid()) + ".mcap"))
                                      .string();
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  auto reader = tycho::trace::RunReader::open(path);
  if (reader.ok()) {
    tycho::trace::MessageHandler nobody;
    (void)reader.value()->read(nobody);
  }
  return 0;
}
