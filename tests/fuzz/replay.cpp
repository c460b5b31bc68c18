// Feeds the fuzzer's entry point with the kept traces and with mutations of them that are the same
// every time: what a build without libFuzzer can do.
//   NAME_fuzz_replay TRACES MUTATIONS
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

void feed(const std::string& bytes) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

// Bits, runs of bytes, lengths, cuts and repeats: what damages and forgers do.
std::string mutate(std::string bytes, std::mt19937_64* random) {
  const auto below = [&](size_t n) { return static_cast<size_t>((*random)() % (n > 0 ? n : 1)); };
  const size_t changes = 1 + below(8);
  for (size_t i = 0; i < changes && !bytes.empty(); ++i) {
    const size_t at = below(bytes.size());
    switch (below(5)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 1:
        for (size_t k = at; k < bytes.size() && k < at + 8; ++k)
          bytes[k] = static_cast<char>((*random)() & 255);
        break;
      case 2:
        for (size_t k = at; k < bytes.size() && k < at + 8; ++k)
          bytes[k] = static_cast<char>(below(2) * 255);
        break;
      case 3:
        bytes.resize(at);
        break;
      default:
        bytes.insert(at, bytes.substr(below(bytes.size()), below(200)));
    }
  }
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: NAME_fuzz_replay TRACES MUTATIONS\n");
    return 2;
  }
  std::mt19937_64 random(1);
  int seeds = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(argv[1])) {
    if (entry.path().extension() != ".mcap") continue;
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    feed(bytes);
    for (int i = 0; i < std::atoi(argv[2]); ++i) feed(mutate(bytes, &random));
    ++seeds;
  }
  if (seeds == 0) {
    std::fprintf(stderr, "no trace under %s\n", argv[1]);
    return 1;
  }
  return 0;
}
