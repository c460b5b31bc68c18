// Succeeds if the run directory in the first argument holds a record of the loss; without
// arguments, if it links.
#include <tycho/analyzer/engine.h>
#include <tycho/trace/run_reader.h>

#include <iostream>

namespace {

class Counter : public tycho::trace::MessageHandler {
 public:
  bool on_record(const std::string&, const tycho::v1::Record&, int64_t) override {
    ++records;
    return true;
  }
  int records = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 0;
  auto reader = tycho::trace::RunReader::open(argv[1]);
  if (!reader.ok()) {
    std::cerr << reader.status().message() << "\n";
    return 1;
  }
  Counter counter;
  const tycho::Status status = reader.value()->read(counter);
  std::cout << counter.records << " records\n";
  return status.ok() && counter.records > 0 ? 0 : 1;
}
